"""Checkpoints of ranks on Ray: the same ranks go on bitwise, others within the tolerances."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray

from benchmarks.outcome_log import OutcomeLog
from benchmarks.resume_matrix import Move, Place, all_moves, all_places, markdown, run_moves
from launch.training import run_training
from tests.helpers import tiny_config
from tests.test_resume import end_at, rows
from tsarch.errors import InterruptedRunError

LOCAL = Place(None)
MOVES = [
    Move("overlapped", "adamw", LOCAL, Place((2, 1), 3)),
    Move("overlapped", "adamw", Place((1, 2), 2), LOCAL),
    Move("overlapped", "sgd", Place((2, 1), 3), Place((1, 2), 2)),
    Move("sequential", "adamw", Place((1, 2), 3), Place((2, 1), 0)),
    Move("joint", "adamw", Place((2, 1), 0), Place((1, 2), 3)),
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


@pytest.mark.ray
@pytest.mark.slow
def test_a_checkpoint_goes_on_in_other_places(tmp_path):
    config = tiny_config(tmp_path, schedule={"epochs": 3})
    outcomes = list(run_moves(config, MOVES, num_steps=8, tick=3))
    assert {outcome.move for outcome in outcomes} == set(MOVES)
    for outcome in outcomes:
        # In `overlapped` the student had not done the step before the cut.
        assert outcome.num_steps == (6 if outcome.move.schedule == "overlapped" else 5)
        assert outcome.is_equal, outcome


@pytest.mark.ray
@pytest.mark.slow
def test_the_same_ranks_on_ray_go_on_bitwise(tmp_path, monkeypatch):
    def config(name: str):
        return tiny_config(
            tmp_path,
            run={"folder": str(tmp_path / name)},
            teacher={"dropout": 0.1},
            student={"dropout": 0.1},
            schedule={"epochs": 2, "micro_batches": 2},
            embedding={"shard_optimizer": True},
            evaluation={"before": False},
            checkpoint={"every_steps": 3},
            topology={
                "threads": 1,
                "teacher": {"replicas": 2, "zero_stage": 2},
                "student": {"zero_stage": 3},
            },
        )

    run_training(config("whole"))
    with monkeypatch.context() as patch:
        end_at(patch, 6)
        with pytest.raises(InterruptedRunError, match="saved at step"):
            run_training(config("halves"))
    assert not ray.is_initialized()
    summary = run_training(config("halves"), resume=True)
    assert summary["resumes"] == 1
    one, other = tmp_path / "halves", tmp_path / "whole"
    assert rows(one) == rows(other)
    assert (one / "evaluations.jsonl").read_text() == (other / "evaluations.jsonl").read_text()
    for model in ("teacher", "student", "embedding"):
        file = f"model/{model}.safetensors"
        assert (one / file).read_bytes() == (other / file).read_bytes()
    stalls = json.loads((one / "summary.json").read_text())["checkpoints"]
    assert stalls["failed"] == 0
    assert not list((one / "checkpoints").glob("*.partial"))
