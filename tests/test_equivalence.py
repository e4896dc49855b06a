"""One process = any ranks, with DeepSpeed: a covering subset of `make equivalence`."""

from __future__ import annotations

import pytest

from tests.helpers import tiny_config
from tests.suites.equivalence import (
    PAIRS,
    Case,
    all_cases,
    covering_cases,
    run_cases,
)
from tsarch.config import AttentionConfig


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


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    "replicas", [pytest.param(pair, marks=pytest.mark.replicas(*pair)) for pair in PAIRS]
)
def test_every_schedule_gives_the_losses_of_one_process(tmp_path, crews, replicas):
    config = tiny_config(tmp_path, schedule={"epochs": 3, "micro_batches": 4})
    check(config, [case for case in covering_cases() if case.replicas == replicas], crews)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
def test_a_sharded_optimizer_of_the_table_changes_nothing(tmp_path, crews):
    config = tiny_config(tmp_path, embedding={"shard_optimizer": True}, schedule={"epochs": 3})
    check(config, [Case("overlapped", "adamw", (2, 1), (2, 0))], crews)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(1, 1)
def test_bf16_on_ranks_of_one_replica_is_one_process(tmp_path, crews):
    """They round in the same places, so the bound is that of fp32."""
    config = tiny_config(tmp_path, schedule={"epochs": 3, "micro_batches": 4})
    config = config.model_copy(
        update={"precision": "bf16", "attention": AttentionConfig(products_up_to=64)}
    )
    check(config, [Case("overlapped", "adamw", (1, 1), (0, 0))], crews)
