"""One process = ranks on Ray, with DeepSpeed; and what becomes of them if one fails."""

from __future__ import annotations

import os

import pytest
import ray

from tests.helpers import tiny_config
from tests.suites.equivalence import Case, comparable, run_cases, train_rows
from tsarch.blueprint import resolve
from tsarch.errors import ReplicaDriftError, RunFailedError
from tsarch.rank.api import ProcessApi, RankApi

CASES = [
    Case("overlapped", "sgd", (1, 1), (3, 2)),
    Case("sequential", "adamw", (1, 1), (0, 1)),
    Case("joint", "sgd", (1, 1), (3, 3)),
]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.replicas(1, 1, runner="ray")
def test_every_schedule_gives_the_losses_of_one_process(tmp_path, crews):
    config = tiny_config(tmp_path, schedule={"epochs": 3})
    outcomes = list(run_cases(config, CASES, 10, crews, "ray"))
    assert [outcome.num_steps for outcome in outcomes] == [10] * len(CASES)
    assert all(outcome.is_equal for outcome in outcomes), outcomes


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.replicas(1, 1, runner="ray", spoils=True)
def test_drift_of_a_replica_ends_the_run_and_a_failed_rank_is_named(tmp_path, crews):
    config = tiny_config(tmp_path, embedding={"check_every": 2}, schedule={"epochs": 3})
    config = comparable(config, Case("overlapped", "adamw", (1, 1), (1, 0)), 10, "ray")
    crew = crews.get(config)
    train_rows(crew, 3)
    crew.ask(RankApi.perturb_table, 1, 1e-6)
    with pytest.raises(ReplicaDriftError, match="step 2: the tied embedding of") as caught:
        train_rows(crew, 6)
    # Of two replicas neither is in the majority: both are named.
    assert caught.value.ranks == ["teacher 0 (rank 0)", "student 0 (rank 1)"]
    crew.ask(ProcessApi.leave, ("teacher", "student"))
    crew.join()
    crew.build(resolve(config))
    pid = ray.get(crew._members.workers[1].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, 9)
    with pytest.raises(RunFailedError, match=r"student 0 \(rank 1\) on .* was killed"):
        train_rows(crew, 6)
    crews.close()
    assert not ray.is_initialized()
