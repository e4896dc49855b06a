"""A run's current version is what is read of it."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.test_pair import run_of
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.prediction.loading import load
from tsarch.run.saved_run import open_run
from tsarch.run.versions import CURRENT, current_folder


def test_a_run_that_was_never_refitted_is_its_own_version(tmp_path):
    assert current_folder(tmp_path) == tmp_path


def test_the_version_that_is_named_is_read(tmp_path):
    (tmp_path / CURRENT).write_text('{"version": "v2"}')
    (tmp_path / "versions/v2").mkdir(parents=True)
    assert current_folder(tmp_path) == tmp_path / "versions/v2"
    assert current_folder(current_folder(tmp_path)) == tmp_path / "versions/v2"


def test_a_version_that_is_gone_is_told(tmp_path):
    (tmp_path / CURRENT).write_text('{"version": "v2"}')
    with pytest.raises(UserError, match="names the version v2, which is not there"):
        current_folder(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"version": 2}', '{"version": ".."}', '{"version": "a/b"}']
)
def test_a_damaged_file_is_told(tmp_path, text):
    (tmp_path / CURRENT).write_text(text)
    with pytest.raises(UserError, match="it must name a version"):
        current_folder(tmp_path)


@pytest.mark.slow
def test_all_that_reads_a_run_reads_its_current_version(tmp_path):
    run = tmp_path / "run"
    run_training(run_of(tmp_path, "ner"))
    whole = shutil.copytree(run, tmp_path / "whole")
    shutil.copytree(whole, run / "versions" / "v2")
    (run / CURRENT).write_text('{"version": "v2"}')
    task = json.loads((whole / "model/task.json").read_text())
    task["joint_weight"] = 0.25
    (run / "versions/v2/model/task.json").write_text(json.dumps(task))
    assert open_run(run)[1].joint_weight == 0.25
    assert open_run(whole)[1].joint_weight != 0.25
    assert load(run).revision != load(whole).revision
