"""Checkpoints on an S3 server (moto, on loopback): written, damaged, resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest

from tests.test_checkpoint_store import write
from tests.test_resume import end_at, local, rows
from tsarch.checkpoint.store import Store
from tsarch.errors import InterruptedRunError, UserError
from tsarch.launch.training import run_training


@pytest.fixture
def url(bucket: str) -> str:
    """In an empty bucket of a server; the environment names it, as a user's would."""
    return f"{bucket}/runs/one"


def test_a_store_on_s3_is_complete_with_its_manifest(url):
    store = Store(url)
    assert store.steps() == []
    write(store, 3)
    write(store, 7, score=0.25)
    store.begin(9)
    store.put(9, "teacher-0.safetensors", lambda path: path.write_bytes(b"x"))
    assert store.steps() == [3, 7]
    assert store.manifest(7).score == 0.25
    assert store.damage(7) is None
    fsspec.filesystem("s3").pipe_file(f"{url}/step-7/teacher-0.safetensors", b"x")
    assert "has 1 bytes, not" in str(Store(url).damage(7))
    store.delete(3)
    assert store.steps() == [7]


@pytest.mark.slow
def test_a_run_goes_on_from_s3_alone(tmp_path: Path, monkeypatch, url):
    """In a run folder that holds nothing but its config: as on another machine."""
    sections = {"schedule": {"epochs": 2}}
    whole = local(tmp_path, "whole", **sections)
    run_training(whole)
    config = local(tmp_path, "halves", checkpoint={"folder": url}, **sections)
    with monkeypatch.context() as patch:
        end_at(patch, 7)
        with pytest.raises(InterruptedRunError, match="saved at step"):
            run_training(config)
    folder = tmp_path / "halves"
    assert not (folder / "checkpoints").exists()
    first = rows(folder)
    with pytest.raises(UserError, match="holds checkpoints already"):
        run_training(local(tmp_path, "another", checkpoint={"folder": url}, **sections))
    for path in folder.iterdir():
        if path.name != "config.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run_training(config, resume=True)
    whole_rows = rows(tmp_path / "whole")
    assert rows(folder) == whole_rows[-len(rows(folder)) :]
    assert first == whole_rows[: len(first)]
    for model in ("teacher", "student", "embedding"):
        file = f"model/{model}.safetensors"
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
