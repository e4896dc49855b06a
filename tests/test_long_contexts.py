"""A teacher's contexts of 8,192 tokens, shared by ranks."""

from __future__ import annotations

import pytest

from benchmarks.long_contexts import markdown, measure
from tests.suites.equivalence import TOLERANCE


@pytest.mark.ranks
@pytest.mark.thorough
def test_a_context_of_8192_tokens_takes_each_rank_its_slice():
    one, two, four = (measure(slices) for slices in (1, 2, 4))
    for own, most in ((two, 0.65), (four, 0.4)):
        assert own.losses == pytest.approx(one.losses, rel=TOLERANCE["sgd"])
        assert own.context_bytes < most * one.context_bytes
    assert markdown([one, two, four]).count("\n| ") == 3
