"""What ranks hold under DeepSpeed is what the formula says."""

from __future__ import annotations

import pytest

from benchmarks.memory import markdown, measure


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.thorough
def test_the_formula_tells_what_two_ranks_hold():
    cases = measure(2)
    assert len(cases) == 8
    for case in cases:
        assert [held.rank for held in case.ranks] == [0, 1]
        for held in case.ranks:
            assert held.weights == pytest.approx(case.formula.weights, rel=0.03)
            assert held.optimizer == pytest.approx(case.formula.optimizer, rel=0.01)
            # The gradient of a parameter that is split between ranks stays whole at ZeRO 2.
            most = 1.4 if case.zero_stage == 2 else 1.01
            assert 0.98 <= held.gradients / case.formula.gradients <= most
    assert markdown(cases).count("| bf16 |") == 4
