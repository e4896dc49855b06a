"""The equivalence test that every task has: three schedules on ranks against one process."""

from __future__ import annotations

from tests.suites.crews import Crews
from tests.suites.equivalence import Case, run_cases
from tsarch.config import Config


def check_equal_losses(
    config: Config,
    replicas: tuple[int, int],
    crews: Crews,
    num_steps: int = 6,
    sequence_parallel: int = 1,
) -> None:
    """Every loss is one process's under all schedules, at different ZeRO stages."""
    cases = [
        Case("overlapped", "sgd", replicas, (0, 1), sequence_parallel),
        Case("sequential", "adamw", replicas, (3, 2), sequence_parallel),
        Case("joint", "sgd", replicas, (1, 3), sequence_parallel),
    ]
    outcomes = list(run_cases(config, cases, num_steps, crews))
    assert [outcome.num_steps for outcome in outcomes] == [num_steps] * len(cases)
    assert all(outcome.is_equal for outcome in outcomes), outcomes
