"""Run folders and checkpoints that were damaged or made up: resuming and evaluating say so."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.fuzzing import (
    bytes_changed,
    check_refusal,
    command,
    few,
    many,
    stop_at_the_crew,
    tree,
)
from tests.helpers import tiny_raw
from tsarch.config_loading import parse_config
from tsarch.launch.training import run_training

STEPS = 3
ODD = [
    *(None, True, -1, 0, 1, 2, 99, 10**30, 0.5, 1e308, "", "x", "../../x", "/etc/passwd", [], {}),
    *([None], {"a": 1}, "\x00", "\ud800", "[/b]", "ner", "qa", [[[]]]),
]
NAMES = [
    "../../x",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/../../b",
    "model/../../x",
    "\x00",
    "C:\\x",
    "-",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of three steps with two checkpoints."""
    folder = tmp_path_factory.mktemp("saved")
    raw = tiny_raw(
        folder,
        topology={"runner": "local", "threads": 1},
        schedule={"epochs": 1, "max_steps": STEPS},
        evaluation={"before": False},
        checkpoint={"every_steps": 2, "keep_last": 2},
    )
    raw["teacher"]["config"]["num_hidden_layers"] = 2
    raw["student"]["layers"] = [0]
    run_training(parse_config(raw, "saved"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder / "run"


def copy_of(run: Path, finished: bool) -> Path:
    """The run as it was; large files are the same ones, so they may be replaced, not changed."""
    copy = run.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)

    def link(source: str, target: str) -> None:
        small = os.path.getsize(source) < 100_000
        (shutil.copyfile if small else os.link)(source, target)

    shutil.copytree(run, copy, copy_function=link, ignore=shutil.ignore_patterns("tensorboard"))
    if not finished:
        (copy / "summary.json").unlink()
    return copy


def replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """Bytes flipped, cut, doubled or emptied; mostly near the start, where headers are."""
    for _ in range(data.draw(st.integers(1, 3))):
        most = min(len(content), data.draw(st.sampled_from([64, 10**7])))
        at = data.draw(st.integers(0, max(most, 1)))
        match data.draw(st.sampled_from(["flip", "flip", "cut", "bytes", "empty"])):
            case "empty":
                content = b""
            case how:
                content = bytes_changed(content, at, how, data)
    return content


def change_json(value: Any, data: st.DataObject) -> Any:
    """One value somewhere inside replaced or removed."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 4)):
        key = data.draw(st.sampled_from(sorted(value)))
        if data.draw(st.integers(0, 5)) == 0:
            return {name: own for name, own in value.items() if name != key}
        return {**value, key: change_json(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 3)):
        place = data.draw(st.integers(0, len(value) - 1))
        return [change_json(v, data) if i == place else v for i, v in enumerate(value)]
    return data.draw(st.sampled_from(ODD))


def files_of(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def seal(checkpoint: Path) -> None:
    """Make the manifest fit its files again, as somebody would who means harm."""
    names = [name for name in files_of(checkpoint) if name != "manifest.json"]
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    contents = {name: (checkpoint / name).read_bytes() for name in names}
    manifest["files"] = {
        name: {"bytes": len(own), "sha256": hashlib.sha256(own).hexdigest()}
        for name, own in contents.items()
    }
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def end_well_or_refuse(arguments: list[str], run: Path) -> int | None:
    """Nothing outside of the copy may change, and the original is outside of it."""
    before = tree(run)
    status, text = command(arguments)
    if status:
        check_refusal(status, text)
    assert tree(run) == before
    assert not (run.parent.parent / "x").exists()
    return status


def check_evaluate(run: Path, data: st.DataObject) -> int | None:
    copy = copy_of(run, finished=True)
    chosen = [n for n in files_of(copy) if n == "config.yaml" or n.startswith("model")]
    name = data.draw(st.sampled_from(chosen))
    content = (copy / name).read_bytes()
    if name.endswith(".json") and data.draw(st.booleans()):
        changed = json.dumps(change_json(json.loads(content), data)).encode()
    else:
        changed = damaged(content, data)
    replace(copy / name, changed)
    return end_well_or_refuse(["evaluate", str(copy)], run)


def check_resume(run: Path, data: st.DataObject, sealed: bool) -> int | None:
    """Damage in the newest checkpoint or the run folder; `sealed`: with fitting hashes."""
    copy = copy_of(run, finished=False)
    newest = copy / "checkpoints" / f"step-{STEPS}"
    shutil.rmtree(newest)  # it is the run's end: nothing would be left to do
    older = copy / "checkpoints" / "step-2"
    folder = older if sealed else copy
    name = data.draw(st.sampled_from([n for n in files_of(folder) if not n.endswith(".html")]))
    content = (folder / name).read_bytes()
    if name.endswith(".json") and data.draw(st.integers(0, 3)):
        changed = json.dumps(change_json(json.loads(content), data)).encode()
    elif name.endswith(".safetensors") and data.draw(st.booleans()):
        tensors = load_file(folder / name)
        tensors.pop(data.draw(st.sampled_from(sorted(tensors))))
        save_file(tensors, copy / "other")
        changed = (copy / "other").read_bytes()
    else:
        changed = damaged(content, data)
    replace(folder / name, changed)
    if sealed and name != "manifest.json":
        seal(older)
    return end_well_or_refuse(["train", str(copy), "--resume"], run)


@few(3)
@given(data=st.data())
def test_evaluate_quick(run, data):
    check_evaluate(run, data)


@few(5)
@given(data=st.data(), sealed=st.booleans())
def test_resume_quick(run, data, sealed):
    with pytest.MonkeyPatch.context() as patch:
        stop_at_the_crew(patch)
        check_resume(run, data, sealed)


@pytest.mark.slow
@many(60)
@given(data=st.data())
def test_evaluate(run, data):
    check_evaluate(run, data)


@pytest.mark.slow
@many(40)
@given(data=st.data(), sealed=st.booleans())
def test_resume(run, data, sealed):
    """To the end of the run, where it goes on."""
    check_resume(run, data, sealed)


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_that_leads_out_of_its_checkpoint_is_refused(run, name):
    copy = copy_of(run, finished=False)
    shutil.rmtree(copy / "checkpoints" / f"step-{STEPS}")
    path = copy / "checkpoints" / "step-2" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = manifest["files"]["progress.json"]
    path.write_text(json.dumps(manifest))
    status, text = command(["train", str(copy), "--resume"])
    assert status == 2
    assert "outside of the checkpoint" in " ".join(text.split())
    assert yaml.safe_load((copy / "config.yaml").read_text())
