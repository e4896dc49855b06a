"""Versions of a run: which is current, which are kept, and whether a new one is taken."""

from __future__ import annotations

import json
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from tsarch.errors import UserError
from tsarch.refit.judging import HELD_OUT, TEST, Pair, judge
from tsarch.refit.lineage import FIRST, Lineage
from tsarch.refit.records import Record
from tsarch.run.evaluate import Evaluation
from tsarch.run.versions import CURRENT, current_folder
from tsarch.tasks.registry import make_task


def finished_run(folder: Path) -> Path:
    """What a finished run's folder has at least."""
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text("task: {name: ner}\n")
    (folder / "model" / "task.json").write_text("{}")
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "checkpoints" / "step-1" / "manifest.json").write_text("{}")
    return folder


def version(lineage: Lineage, name: str, parent: str, accepted: bool | None = True) -> Record:
    """A version and its record."""
    lineage.refit_folder(name).mkdir(parents=True)
    (lineage.folder(name) / "model").mkdir(parents=True)
    (lineage.folder(name) / "model" / "task.json").write_text("{}")
    own = Record(name, parent, "2026-01-01", "x.jsonl", f"print-{name}", {}, accepted=accepted)
    own.write(lineage.refit_folder(name))
    if accepted:
        lineage.make_current(name, "better")
    return own


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    return Lineage(finished_run(tmp_path / "run"))


def test_a_run_is_its_own_first_version(lineage):
    assert (lineage.current, lineage.changes, lineage.records()) == (FIRST, [], [])
    assert lineage.folder(FIRST) == lineage.run
    lineage.adopt()
    adopted = lineage.folder(FIRST)
    assert adopted == lineage.run / "versions" / FIRST
    assert (adopted / "config.yaml").samefile(lineage.run / "config.yaml")
    assert not (adopted / "checkpoints").exists()
    assert current_folder(lineage.run) == lineage.run


def test_a_version_is_current_once_it_is_taken(lineage):
    version(lineage, "v2", FIRST)
    version(lineage, "v3", "v2", accepted=False)
    assert current_folder(lineage.run) == lineage.folder("v2")
    assert lineage.next_name() == "v4"
    assert [own.version for own in lineage.records()] == ["v2", "v3"]
    assert [own.version for own in lineage.ancestors("v3")] == ["v3", "v2"]
    assert [change["version"] for change in lineage.changes] == ["v2"]


def test_names_count_beyond_nine_and_are_never_given_again(lineage):
    for number in range(2, 12):
        version(lineage, f"v{number}", FIRST)
    assert [own.version for own in lineage.records()][-1] == "v11"
    assert lineage.next_name() == "v12"


def test_a_switch_that_was_cut_off_is_made_up_for(lineage):
    own = version(lineage, "v2", FIRST, accepted=None)
    with lineage.locked():
        assert lineage.current == FIRST
    replace(own, accepted=True, reason="better").write(lineage.refit_folder("v2"))
    with lineage.locked():
        assert lineage.current == "v2"
    lineage.make_current(FIRST, "rolled back from v2")
    with lineage.locked():  # it was taken once: that somebody went back stays
        assert lineage.current == FIRST


def test_the_current_version_and_its_parent_are_never_removed(lineage):
    for number in range(2, 7):
        version(lineage, f"v{number}", f"v{number - 1}")
    assert lineage.prune(keep=1) == [FIRST, "v2", "v3", "v4"]
    assert lineage.has_weights("v5")
    assert lineage.has_weights("v6")
    assert not lineage.has_weights("v4")
    assert lineage.has_weights(FIRST)  # the run's own files are no version's
    lineage.make_current("v5", "rolled back from v6")
    version(lineage, "v7", "v5", accepted=False)
    assert lineage.prune(keep=1) == ["v6"]
    assert [own.version for own in lineage.records()] == ["v2", "v3", "v4", "v5", "v6", "v7"]


def test_what_is_left_of_an_unfinished_refit_goes(lineage):
    version(lineage, "v2", FIRST, accepted=None)
    lineage.discard("v2")
    assert lineage.records() == []
    assert not lineage.folder("v2").exists()
    assert lineage.next_name() == "v2"


def hold(
    run: Path, held: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event
) -> None:
    with Lineage(run).locked():
        held.set()
        done.wait(30)


@pytest.mark.slow
def test_two_at_a_time_are_told_and_a_killed_one_holds_nothing(lineage):
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(lineage.run, held, done))
    process.start()
    assert held.wait(60)
    with pytest.raises(UserError, match=rf"by another process \(process {process.pid} on"):
        lineage.locked().__enter__()
    process.kill()
    process.join()
    with lineage.locked():
        pass


def test_no_run_and_damaged_records_are_told(tmp_path, lineage):
    with pytest.raises(UserError, match=r"is not a finished run \(config.yaml is missing\)"):
        Lineage(tmp_path)
    version(lineage, "v2", FIRST)
    (lineage.refit_folder("v2") / "refit.json").write_text("{")
    with pytest.raises(UserError, match="can't be read"):
        lineage.records()
    (lineage.run / CURRENT).write_text(json.dumps({"version": "v9"}))
    with pytest.raises(UserError, match="names the version v9"):
        current_folder(lineage.run)


def pair(old: float, new: float, metric: str = "f1") -> Pair:
    def evaluation(value: float) -> Evaluation:
        return Evaluation({"joint": {metric: value}}, 0.5)

    return Pair(evaluation(old), evaluation(new))


@pytest.mark.parametrize(
    ("test", "held", "accepted"),
    [
        ((0.60, 0.59), (0.50, 0.51), True),
        ((0.60, 0.60), (0.50, 0.50), True),
        ((0.60, 0.595), (0.00, 0.00), False),
        ((0.60, 0.5899), (0.50, 0.70), False),
        ((0.60, 0.70), (0.50, 0.4999), False),
        ((0.60, math.nan), (0.50, 0.60), False),
        ((0.60, 0.60), (0.50, math.nan), False),
    ],
)
def test_a_version_is_taken_within_the_margin(test, held, accepted):
    task = make_task("ner", ("O", "B-X", "I-X"))
    verdict = judge(task, "joint", {TEST: pair(*test), HELD_OUT: pair(*held)}, margin=1.0)
    assert verdict.accepted is accepted
    assert verdict.scores[TEST]["old"] == 0.60


def test_the_reason_names_what_is_worse_and_by_how_much():
    task = make_task("ner", ("O", "B-X", "I-X"))
    verdict = judge(task, "joint", {TEST: pair(0.6, 0.55), HELD_OUT: pair(0.5, 0.6)}, margin=2.0)
    assert verdict.reason == "old test set 0.6000 → 0.5500 (-5.0 points): more than the margin of 2"


def test_points_of_perplexity_are_percents():
    task = make_task("translation", ())
    bad = judge(task, "joint", {TEST: pair(20.0, 20.3, "perplexity")}, margin=1.0)
    good = judge(task, "joint", {TEST: pair(20.0, 20.1, "perplexity")}, margin=1.0)
    assert (bad.accepted, good.accepted) == (False, True)
    assert bad.scores[TEST] == {"old": 20.0, "new": 20.3}
