"""One process = any ranks, on Ray with DeepSpeed: a covering subset of `make equivalence`."""

from __future__ import annotations

import os

import pytest
import ray

from tests.helpers import tiny_config
from tests.suites.equivalence import (
    PAIRS,
    Case,
    all_cases,
    comparable,
    covering_cases,
    run_cases,
    train_rows,
)
from tsarch.errors import ReplicaDriftError, RunFailedError
from tsarch.rank.api import RankApi

QUICK = [
    Case("overlapped", "sgd", (1, 1), (3, 2)),
    Case("sequential", "adamw", (1, 1), (0, 1)),
    Case("joint", "sgd", (1, 1), (3, 3)),
]


def test_the_full_suite_is_the_whole_product():
    cases = all_cases()
    assert len(set(cases)) == 3 * 2 * 5 * 16
    assert {c.replicas for c in cases} == {(1, 1), (2, 1), (1, 2), (3, 2), (2, 3)}


def test_the_covering_subset_covers():
    cases = covering_cases()
    assert len({(c.schedule, c.replicas) for c in cases}) == 3 * 5
    assert len({c.zero_stages for c in cases}) == 16
    assert len({(c.schedule, c.optimizer) for c in cases}) == 3 * 2


def check(config, cases, crews):
    outcomes = list(run_cases(config, cases, 10, crews))
    assert len(outcomes) == len(cases)
    for outcome in outcomes:
        assert outcome.num_steps == 10
        assert outcome.tied_max_abs_diff == 0.0
        assert outcome.is_equal, outcome


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.replicas(1, 1)
def test_one_rank_a_stage_gives_the_losses_of_one_process(tmp_path, crews):
    check(tiny_config(tmp_path, schedule={"epochs": 3}), QUICK, crews)


# Two teachers with three students are left to `make equivalence`: it takes a minute.
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "replicas", [pytest.param(p, marks=pytest.mark.replicas(*p)) for p in PAIRS if p != (2, 3)]
)
def test_other_replica_counts_and_zero_stages_too(tmp_path, crews, replicas):
    config = tiny_config(tmp_path, schedule={"epochs": 3, "micro_batches": 4})
    check(config, [case for case in covering_cases() if case.replicas == replicas], crews)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
def test_a_sharded_optimizer_of_the_table_changes_nothing(tmp_path, crews):
    config = tiny_config(tmp_path, embedding={"shard_optimizer": True}, schedule={"epochs": 3})
    check(config, [Case("overlapped", "adamw", (2, 1), (2, 0))], crews)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.replicas(1, 1, spoils=True)
def test_drift_of_a_replica_ends_the_run_and_a_failed_rank_is_named(tmp_path, crews):
    config = tiny_config(tmp_path, embedding={"check_every": 2}, schedule={"epochs": 3})
    config = comparable(config, Case("overlapped", "adamw", (1, 1), (1, 0)), 10)
    crew = crews.get(config)
    train_rows(crew, 3)
    crew.ask(RankApi.perturb_table, 1, 1e-6)
    with pytest.raises(ReplicaDriftError, match="step 2: the tied embedding of") as caught:
        train_rows(crew, 6)
    # Of two replicas neither is in the majority: both are named.
    assert caught.value.ranks == ["teacher 0 (rank 0)", "student 0 (rank 1)"]
    crew.build(config)
    pid = ray.get(crew._workers[1].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, 9)
    with pytest.raises(RunFailedError, match=r"student 0 \(rank 1\) on .* was killed"):
        train_rows(crew, 6)
    crews.close()
    assert not ray.is_initialized()
