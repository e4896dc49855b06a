"""The parts of the run loop: the best weights, bad numbers, the summary, who is told."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tsarch.config import MODES
from tsarch.errors import RunFailedError
from tsarch.run.evaluate import Evaluation
from tsarch.run.number_guard import NumberGuard
from tsarch.run.selection import Selection
from tsarch.run.summary import RunSummary, StageSummary, Work
from tsarch.tasks.registry import make_task
from tsarch.telling.step_table import Totals
from tsarch.telling.terminal import LiveNumbers, RecentLosses, Reporter
from tsarch.telling.trackers import Trackers
from tsarch.topology import Topology

KEYS = [
    "task",
    "schedule",
    "runner",
    "teacher",
    "student",
    "embedding_parameters",
    "main_metric",
    "lower_is_better",
    "before",
    "after",
    "validation",
    "best_epoch",
    "selected_by",
    "joint_weight",
    "steps",
    "tokens",
    "wall_s",
    "train_s",
    "pipeline_s",
    "tokens_per_s",
    "stage_busy_s",
    "stage_busy_share",
    "bubble_fraction",
    "real_share",
    "link_bytes_per_step",
    "tied_bytes_per_step",
    "link_s_per_step",
    "link_wait_s_per_step",
    "tied_s_per_step",
    "tied_wait_s_per_step",
    "tied_max_abs_diff",
    "peak_memory_bytes",
    "data",
    "num_cut_tokens",
    "signatures",
    "notes",
    "balance",
    "samples",
    "generation",
    "bad_steps",
    "checkpoints",
    "resumes",
    "restarts",
    "failures",
    "timings",
]
"""Of `summary.json`, in their order: others read it."""


def validation(f1: float) -> Evaluation:
    return Evaluation({mode: {"f1": f1} for mode in MODES}, 0.5)


def selection(patience: int | None) -> Selection:
    return Selection(make_task("ner", ["O", "B-PER", "I-PER"]), "joint", patience)


def test_the_last_of_the_best_is_kept_and_patience_counts_what_is_no_better():
    own = selection(2)
    assert own.record() is None
    assert [own.offer(validation(f1), epoch) for epoch, f1 in enumerate((0.1, 0.3, 0.3), 1)] == [
        "best so far",
        "best so far",
        "as good as epoch 2, and later",
    ]
    assert own.best.epoch == 3
    assert not own.patience_is_over
    assert not own.offer(validation(0.2), 4)
    assert own.best.epoch == 3
    assert own.patience_is_over
    assert own.offer(validation(0.4), 5)
    assert not own.patience_is_over


def test_where_no_two_scores_are_equal_the_best_epoch_is_the_only_one_there_is():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.permutation(8) / 8
        own = selection(None)
        kept = [bool(own.offer(validation(f1), epoch)) for epoch, f1 in enumerate(scores, 1)]
        assert own.best.epoch == int(np.argmax(scores)) + 1
        assert kept == [scores[n] == max(scores[: n + 1]) for n in range(8)]


def test_a_score_that_is_no_number_is_not_kept():
    own = selection(None)
    offered = [own.offer(validation(f1), epoch) for epoch, f1 in enumerate((0.1, np.nan, 0.1), 1)]
    assert [bool(reason) for reason in offered] == [True, False, True]
    worst = selection(None)
    assert worst.offer(validation(np.nan), 1)
    assert worst.offer(validation(0.0), 2) == "best so far"


def test_where_validation_cannot_tell_the_last_weights_are_kept_and_patience_does_not_end():
    own = Selection(make_task("ner", ["O", "B-PER", "I-PER"]), "joint", 1, can_tell=False)
    for epoch in (1, 2, 3):
        assert own.offer(validation(0.0), epoch) == "the validation split can't tell"
        assert own.best.epoch == epoch
        assert not own.patience_is_over


def test_a_selection_goes_on_from_its_record():
    own, again = selection(2), selection(2)
    for epoch, f1 in enumerate((0.3, 0.1), 1):
        own.offer(validation(f1), epoch)
    again.restore(own.record())
    assert again.best == own.best
    assert (again.num_worse, own.num_worse) == (1, 1)
    assert again.offer(validation(0.3), 3) == "as good as epoch 1, and later"
    assert again.patience_is_over


def test_bad_numbers_are_told_once_and_end_the_run_with_the_batch(tmp_path: Path):
    said: list[str] = []
    saved: list[Any] = []

    def save(step: int, rows: list[Any]) -> Path:
        saved.append((step, [row["step"] for row in rows]))
        return tmp_path / "batch"

    guard = NumberGuard(2, save, said.append)
    for step, num_bad in ((3, 1), (4, 0), (5, 1), (6, 2)):
        guard.check({"step": step}, num_bad)
    assert [line.partition(":")[2][:8] for line in said] == [" step 3:", " step 5:"]
    with pytest.raises(RunFailedError, match=r"in 3 steps in a row, from step 5 on .*: 2\)"):
        guard.check({"step": 7}, 3)
    assert saved == [(5, [5, 6, 7])]


def test_the_terminal_shows_the_mean_loss_of_recent_steps():
    recent = RecentLosses()
    for step in range(60):
        recent.add({"loss_teacher": float(step % 2), "loss_student": None if step < 59 else 3.0})
    assert recent.text() == "loss (50-step mean) teacher 0.500 student 3.000"
    out = io.StringIO()
    reporter = Reporter(Console(file=out, width=200))
    with reporter.training(2):
        for step, loss in enumerate((1.0, 0.0), 1):
            row = {"loss_teacher": loss}
            reporter._last_line_s = 0.0
            reporter.step(LiveNumbers(row, 9.0, {"teacher": 0.5}), step, 2)
    said = [line.partition("step ")[2].split(" · ")[:2] for line in out.getvalue().splitlines()]
    assert said == [
        ["1/2", "loss (1-step mean) teacher 1.000"],
        ["2/2", "loss (2-step mean) teacher 0.500"],
    ]


def test_a_narrow_terminal_cuts_no_number():
    names = make_task("ner", ["O", "B-PER", "I-PER"]).table_metrics
    values: dict[Any, dict[str, float]] = {mode: dict.fromkeys(names, 0.6543) for mode in MODES}
    for width, num_tables in ((80, 2), (140, 1)):
        out = io.StringIO()
        reporter = Reporter(Console(file=out, width=width))
        reporter.table("test split", {"before": values, "after": values}, names)
        assert out.getvalue().count("0.6543") == 2 * len(MODES) * len(names)
        assert out.getvalue().count("test split") == num_tables
        assert "…" not in out.getvalue()


def test_the_summary_has_the_keys_that_others_read():
    stage = StageSummary("bert", 3, 1, None)
    totals = Totals(steps=4, tokens=8, train_s=2.0, link_bytes=40)
    metrics = {"joint": {"f1": 0.5}}
    summary = RunSummary(
        task="ner",
        schedule="overlapped",
        runner="local",
        teacher=stage,
        student=stage,
        embedding_parameters=5,
        main_metric="f1",
        lower_is_better=False,
        before=None,
        after=metrics,
        validation=metrics,
        best_epoch=1,
        selected_by="joint",
        joint_weight=0.5,
        work=Work.of(totals, Topology.pair(1, 1), 9.0),
        tied_max_abs_diff=0.0,
        peak_memory_bytes={"teacher": 1, "student": 1},
        data={},
        num_cut_tokens={"test": 0},
        signatures={},
        notes=[],
        balance=None,
        samples=[],
        generation={},
        bad_steps=0,
        checkpoints={},
        resumes=0,
        restarts=0,
        failures=[],
        timings={},
    )
    row = json.loads(json.dumps(summary.as_json()))
    assert list(row) == KEYS
    assert row["teacher"] == {
        "model": "bert",
        "parameters": 3,
        "replicas": 1,
        "zero_stage": None,
    }
    assert (row["tokens_per_s"], row["link_bytes_per_step"], row["wall_s"]) == (4.0, 10.0, 9.0)


class Noting:
    """A tracker that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.told.append((name, *arguments))


def test_all_trackers_are_told_and_closed_whatever_happens():
    both = Noting(), Noting()
    trackers = Trackers(both)
    with pytest.raises(ZeroDivisionError):
        _tell(trackers)
    assert trackers.num_evaluations == 2
    names = ["rewind", "step", "ticks", "evaluation", "texts", "close"]
    for one in both:
        assert [name for name, *_ in one.told] == names


def _tell(trackers: Trackers) -> None:
    with trackers:
        trackers.rewind(3, 1)
        trackers.step({"step": 3})
        trackers.ticks([], 0)
        trackers.evaluation("test", 4, {})
        trackers.texts("after", [])
        raise ZeroDivisionError
