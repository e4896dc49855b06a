"""Checkpoints of ranks: the same ranks go on bitwise, others within the tolerances."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import tiny_config
from tests.suites.outcome_log import OutcomeLog
from tests.suites.resume_matrix import (
    Move,
    Place,
    all_moves,
    all_places,
    markdown,
    run_moves,
)
from tsarch.blueprint import resolve
from tsarch.checkpoint.cut import Cut, Resume
from tsarch.checkpoint.manifest import Manifest
from tsarch.checkpoint.store import Store
from tsarch.rank.crew import CutTaken, Reports
from tsarch.rank.pacer import Advance, TakeCut
from tsarch.records import TickReport

LOCAL = Place(None)
MOVES = [
    Move("sequential", "adamw", LOCAL, Place((2, 1), 3)),
    Move("overlapped", "adamw", Place((1, 2), 0), Place((2, 1), 2)),
    Move("joint", "sgd", Place((1, 2), 3), LOCAL),
]
"""Some of `make equivalence`, such that each pair of replica counts starts once."""

# (schedule, ZeRO stages, precision, whether the table's optimizer is sharded)
SAME = [
    ("sequential", (1, 2), "fp32", True),
    ("overlapped", (3, 1), "fp32", True),
    ("joint", (2, 3), "fp32", False),
    ("overlapped", (0, 0), "bf16", False),
]


def test_the_matrix_is_every_place_to_every_place():
    moves = all_moves()
    assert len(all_places()) == 1 + 4 * 3
    assert len({(m.source, m.target) for m in moves}) == len(moves) == 13 * 13
    assert {m.optimizer for m in moves} == {"sgd", "adamw"}
    assert "| from \\ to | local | 1:1 ZeRO 0 |" in markdown([], 8, 3)


def test_a_suite_goes_on_where_it_was_ended(tmp_path: Path):
    log = OutcomeLog(tmp_path / "a" / "log.jsonl", steps=3)
    log.add({"case": 1})
    again = OutcomeLog(tmp_path / "a" / "log.jsonl", steps=3)
    assert again.done == [{"case": 1}]
    again.add({"case": 2})
    assert OutcomeLog(tmp_path / "a" / "log.jsonl", steps=3).done == [{"case": 1}, {"case": 2}]
    assert OutcomeLog(tmp_path / "a" / "log.jsonl", steps=4).done == []


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(1, 2, 2, 1)
def test_a_checkpoint_goes_on_in_other_places(tmp_path, crews):
    config = tiny_config(tmp_path, schedule={"epochs": 3})
    outcomes = list(run_moves(config, MOVES, 8, 3, crews))
    assert {outcome.move for outcome in outcomes} == set(MOVES)
    for outcome in outcomes:
        # In `overlapped` the student had not done the step before the cut.
        assert outcome.num_steps == (6 if outcome.move.schedule == "overlapped" else 5)
        assert outcome.is_equal, outcome


def reported(reports: Iterable[list[TickReport]]) -> list[Any]:
    """What ranks did, times left out."""
    return [
        (r.tick, r.stage, r.replica, r.step, r.losses.means, r.grad_norm)
        for own in reports
        for r in sorted(own, key=lambda r: (r.tick, r.stage, r.replica))
    ]


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
def test_the_same_ranks_go_on_bitwise_at_every_zero_stage(tmp_path, crews):
    """Cut amid an epoch, with dropout, at a tick between two chunks of ticks."""
    for schedule, zero_stages, precision, shard in SAME:
        config = tiny_config(
            tmp_path,
            teacher={"dropout": 0.1},
            student={"dropout": 0.1},
            schedule={"name": schedule, "epochs": 2, "micro_batches": 2},
            embedding={"shard_optimizer": shard},
            topology={
                "runner": "processes",
                "threads": 1,
                "teacher": {"replicas": 2, "zero_stage": zero_stages[0]},
                "student": {"zero_stage": zero_stages[1]},
            },
        ).model_copy(update={"precision": precision})
        crew = crews.get(config)
        store = Store(str(tmp_path / f"{schedule}-{zero_stages}-{precision}"))
        rest_ticks = crew.begin(0, 6) - 3
        store.begin(3)
        for command in (Advance(3), TakeCut(Cut(store.url, 3)), Advance(rest_ticks)):
            crew.send(command)
        events = list(crew.events())
        assert isinstance(events[1], CutTaken)
        whole = reported(event.reports for event in events if isinstance(event, Reports))
        written = crew.checkpoint_written(wait=True)
        assert written is not None
        files = {name: entry for own in written for name, entry in own.files.items()}
        store.commit(Manifest(3, files))
        crew.build(resolve(config))
        resume = Resume(Cut(store.url, 3), 3, same_ranks=True)
        rest = reported(crew.train(0, 6, resume))
        assert rest == [report for report in whole if report[0] >= 3], store.url
        # `overlapped` has a tick more, in which teachers only take part in the exchange.
        assert len(rest) == (12 if schedule == "overlapped" else 9)
