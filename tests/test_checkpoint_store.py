"""What counts as a checkpoint, which are kept, and what a damaged one leads to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tsarch.checkpoint.host_copies import HostCopies, KeptTensors, read_slot
from tsarch.checkpoint.manifest import FileEntry, Manifest
from tsarch.checkpoint.retention import superseded
from tsarch.checkpoint.saved_tensors import SavedTensors
from tsarch.checkpoint.slots import HeldSlots, newest_common
from tsarch.checkpoint.store import Store
from tsarch.checkpoint.writer import BackgroundWriter
from tsarch.errors import UserError
from tsarch.run.resume import find_resume_point
from tsarch.schedule.instruction import SendHidden
from tsarch.schedule.plan import StepRange, resumed, training_programs
from tsarch.topology import Stage


def write(store: Store, step: int, score: float | None = None) -> None:
    """A checkpoint of two files, as ranks and driver write one."""
    writer = BackgroundWriter()
    store.begin(step)
    tensors = {"a": torch.arange(5.0), "b": torch.tensor(step)}
    writer.start(store.url, step, {"teacher-0.safetensors": tensors})
    written = writer.result(wait=True)
    assert written is not None
    assert written.error is None
    text = store.put(step, "model/task.json", lambda path: path.write_text("{}"))
    store.commit(Manifest(step, {**written.files, "model/task.json": text}, score))


def test_a_checkpoint_comes_back_and_counts_only_when_whole(tmp_path):
    store = Store(str(tmp_path / "c"))
    assert store.steps() == []
    write(store, 3)
    write(store, 12, score=0.5)
    store.begin(20)
    store.put(20, "teacher-0.safetensors", lambda path: path.write_bytes(b"x"))
    assert store.steps() == [3, 12]
    assert store.damage(12) is None
    assert store.manifest(12).score == 0.5
    paths = store.fetch(12, ["teacher-0.safetensors"], tmp_path)
    saved = SavedTensors(paths.values())
    assert torch.equal(saved["a"], torch.arange(5.0))
    assert int(saved["b"]) == 12
    store.sweep()
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["step-12", "step-3"]
    store.delete(3)
    assert store.steps() == [12]


def test_tensors_of_a_file_that_is_opened_anew_stay_what_they_are(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.setattr("tsarch.checkpoint.saved_tensors._MOST_BYTES", 30)
    tensors = {name: torch.full((4,), float(i)) for i, name in enumerate("abcde")}
    save_file(tensors, tmp_path / "file.safetensors")
    read = dict(SavedTensors([tmp_path / "file.safetensors"]))
    assert all(torch.equal(read[name], value) for name, value in tensors.items())


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), None),
        (lambda folder: (folder / "manifest.json").write_text("{"), "Expecting property name"),
        (lambda folder: (folder / "model" / "task.json").unlink(), "model/task.json is missing"),
        (lambda folder: os.truncate(folder / "teacher-0.safetensors", 50), "has 50 bytes, not"),
        (lambda folder: flip(folder / "teacher-0.safetensors"), "another content than was written"),
    ],
)
def test_what_is_damaged_is_told(tmp_path, harm, expected):
    store = Store(str(tmp_path))
    write(store, 3)
    write(store, 7)
    harm(tmp_path / "step-7")
    if expected is None:
        assert store.steps() == [3]
        return
    damage = store.damage(7)
    assert damage is not None
    assert expected in damage
    said: list[str] = []
    with pytest.raises(UserError, match="nothing to resume: all 2 checkpoints there are damaged"):
        find_resume_point(store, said.append)  # step 3 is whole, but no run's
    assert said[0].startswith(f"warning: {tmp_path}/step-7 is damaged: ")
    assert said[0].endswith("trying the one before")


def test_a_checkpoint_that_other_hosts_wrote_elsewhere_is_not_complete(tmp_path):
    store = Store(str(tmp_path))
    store.begin(5)
    entry = store.put(5, "teacher-0.safetensors", lambda path: path.write_bytes(b"here"))
    other = FileEntry(4, "0" * 64)
    with pytest.raises(OSError, match=r"student-0.*is not here as it was written"):
        store.commit(Manifest(5, {"teacher-0.safetensors": entry, "student-0.safetensors": other}))
    assert store.steps() == []


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a//b", ".x", "a\\..\\b", ""])
def test_a_manifest_names_no_file_outside(name):
    text = Manifest(1, {name: FileEntry(1, "0")}).text()
    with pytest.raises(ValueError, match="outside of the checkpoint"):
        Manifest.parse(text)


@pytest.mark.parametrize("text", ["[]", "{}", json.dumps({"format": 99}), '{"format": 1}', "null"])
def test_other_json_is_no_manifest(text):
    with pytest.raises(ValueError, match="is not a manifest"):
        Manifest.parse(text)


def test_an_unknown_protocol_is_a_mistake_of_the_user():
    with pytest.raises(UserError, match="nope://x: Protocol not known"):
        Store("nope://x")


def test_a_full_disk_is_told_and_ends_nothing(tmp_path):
    writer = BackgroundWriter()
    (tmp_path / "file").write_text("not a folder")
    writer.start(str(tmp_path / "file"), 1, {"a.safetensors": {"a": torch.zeros(1)}})
    written = writer.result(wait=True)
    assert written is not None
    assert written.error is not None


def test_copies_use_their_memory_again_and_are_copies():
    copies, source, found = HostCopies(num_in_turn=2), torch.zeros(4), []
    for step in range(4):
        copies.begin(step)
        copies.into("f")("x", source)
        found.append(copies.finish()["f"]["x"])
        source += 1
    # Two in turn, so that the one before is whole while one is taken.
    assert [tensor.tolist() for tensor in found] == [[2.0] * 4, [3.0] * 4] * 2
    assert found[0].data_ptr() == found[2].data_ptr() != found[1].data_ptr()


def kept(copies: HostCopies, step: int, value: float) -> None:
    copies.begin(step)
    copies.into("f")("x", torch.full((5,), value))
    copies.into("g")("y", torch.tensor(step))
    copies.into("g")("none", torch.zeros(0, 3, dtype=torch.bfloat16))
    copies.finish()


def test_cuts_outlive_whoever_took_them_and_the_last_that_all_have_is_found():
    held = [HeldSlots.make(), HeldSlots.make()]
    first, second = (HostCopies(own.paths, 2) for own in held)
    assert newest_common([own.cuts() for own in held]) is None
    for step in (5, 10):
        kept(first, step, step)
        kept(second, step, -step)
    kept(first, 15, 15.0)
    second.begin(15)  # and there it ended
    second.into("f")("x", torch.zeros(5))
    step, paths = newest_common([own.cuts() for own in held])
    assert step == 10
    files = [read_slot(path, step) for path in paths]
    assert [own["f"]["x"].tolist() for own in files] == [[10.0] * 5, [-10.0] * 5]
    assert files[0]["g"]["y"].item() == 10
    assert files[0]["g"]["none"].shape == (0, 3)
    with pytest.raises(ValueError, match="doesn't hold the cut of step 5"):
        read_slot(paths[0], 5)
    # Those who go on from it don't change it, nor does what was taken after it come in the way.
    KeptTensors(files[0]["f"])["x"].zero_()
    again = HostCopies(held[0].paths, 2)
    again.forget_after(10)
    kept(again, 12, 12.0)
    assert {10, 12} == set(held[0].cuts())
    assert read_slot(held[0].cuts()[10], 10)["f"]["x"].tolist() == [10.0] * 5
    for own in held:
        own.clear()
    assert newest_common([own.cuts() for own in held]) is None


def test_a_cut_that_is_being_written_stays_and_two_others_take_turns():
    held = HeldSlots.make()
    copies = HostCopies(held.paths, 2)
    kept(copies, 1, 1.0)
    copies.hold()
    for step in range(2, 6):
        kept(copies, step, float(step))
    assert set(held.cuts()) == {1, 4, 5}
    copies.release()
    kept(copies, 6, 6.0)
    assert {5, 6} <= set(held.cuts())


@given(
    st.dictionaries(st.integers(0, 99), st.none() | st.floats(0, 1), min_size=1),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_the_newest_and_the_best_are_kept(scores, keep_last, keep_best):
    deleted = superseded(scores, keep_last, keep_best)
    kept = set(scores) - set(deleted)
    assert set(sorted(scores)[-keep_last:]) <= kept
    validated = {step: score for step, score in scores.items() if score is not None}
    best = sorted(validated, key=lambda step: (-validated[step], -step))[:keep_best]
    assert set(best) <= kept
    assert len(kept) <= keep_last + keep_best


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("name", ["sequential", "overlapped", "joint"])
def test_only_overlapped_has_a_batch_in_flight_between_ticks(name, micro_batches):
    programs = training_programs(name, StepRange(10, 14), micro_batches)
    for done in range(len(programs[Stage.TEACHER]) + 1):
        left, in_flight = resumed(programs, done)
        assert left[Stage.STUDENT] == programs[Stage.STUDENT][done:]
        expected = ()
        if name == "overlapped" and 0 < done <= 4:
            expected = tuple(
                SendHidden(10 + done - 1, m, Stage.STUDENT) for m in range(micro_batches)
            )
        assert in_flight == expected
