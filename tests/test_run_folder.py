"""Whose a run folder is, and what a run that was ended at its very end still lacks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from tests.helpers import tiny_config
from tests.test_pair import run_of
from tsarch.blueprint import Blueprint, resolve
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.telling.run_folder import claimed_folder


def blueprint_of(place: Path, **run: Any) -> Blueprint:
    return resolve(tiny_config(place, run={"folder": None, "name": "own", **run}))


def test_runs_of_one_name_that_start_together_have_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blueprint = blueprint_of(tmp_path)
    with claimed_folder(blueprint) as first, claimed_folder(blueprint) as second:
        assert (first.name, second.name) == ("own", "own-2")
        (second / "config.yaml").write_text("")
    assert not first.exists(), "nothing was written into it"
    assert second.exists()


def test_a_folder_that_is_named_is_for_one_run_alone(tmp_path):
    blueprint = blueprint_of(tmp_path, folder=str(tmp_path / "own"))
    with claimed_folder(blueprint) as folder:
        with pytest.raises(UserError, match="another process trains in it already"):
            claimed_folder(blueprint).__enter__()
        (folder / "config.yaml").write_text("")
        with pytest.raises(UserError, match="another process is training this run"):
            claimed_folder(blueprint, resume=True).__enter__()
    with claimed_folder(blueprint, resume=True) as again:
        assert again == folder


def test_an_empty_folder_of_the_users_stays(tmp_path):
    (tmp_path / "own").mkdir()
    with claimed_folder(blueprint_of(tmp_path, folder=str(tmp_path / "own"))):
        pass
    assert (tmp_path / "own").exists()


def test_a_process_that_is_killed_lets_go(tmp_path):
    code = (
        "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.read()"
    )
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "config.yaml").write_text("")
    blueprint = blueprint_of(tmp_path, folder=str(folder))
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another process is training this run"):
            claimed_folder(blueprint, resume=True).__enter__()
        other.kill()
    with claimed_folder(blueprint, resume=True) as again:
        assert again == folder


@pytest.mark.slow
@pytest.mark.parametrize("depths", [None, [1, 2]])
def test_what_a_run_that_was_ended_at_its_end_lacks_is_made_by_resume(tmp_path, depths):
    config = run_of(tmp_path, "ner")
    if depths is not None:
        student = config.student.model_copy(update={"layers": [0, 2], "depths": depths})
        config = config.model_copy(update={"student": student})
    whole = run_training(config)
    folder = tmp_path / "run"
    with pytest.raises(UserError, match="nothing to resume: the run is complete"):
        run_training(config, resume=True)
    (folder / "report.html").unlink()
    known = json.loads((folder / "summary.json").read_text())
    known.pop("depths", None)
    (folder / "summary.json").write_text(json.dumps(known))
    again = run_training(config, resume=True)
    assert again.get("depths") == whole.get("depths")
    assert (again.get("depths") is None) == (depths is None)
    assert (folder / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("full")])
def test_a_disk_that_takes_no_weights_is_one_message_and_leaves_nothing_behind(
    tmp_path, monkeypatch, error
):
    def fail(*_: Any) -> None:
        raise error

    config = run_of(tmp_path, "ner")
    with monkeypatch.context() as patch:
        patch.setattr("tsarch.rank.rank.save_table", fail)
        with pytest.raises(UserError, match=r"model\.new: can't be written: .*--resume"):
            run_training(config)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run" / "model.new").mkdir(parents=True)
    (tmp_path / "run" / "model.new" / "half").write_text("")
    monkeypatch.setattr("tsarch.telling.run_folder._is_taken", lambda _: False)
    run_training(config)
    assert not (tmp_path / "run" / "model" / "half").exists()
