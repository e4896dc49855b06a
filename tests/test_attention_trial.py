"""Which way is faster is told apart from what else the machine does."""

from __future__ import annotations

import itertools

from tsarch.planning.attention_trial import least_seconds


def test_times_are_taken_until_none_is_less():
    """The first way is slow in most turns, since somebody else wants the cores."""
    took = {
        "busy": itertools.chain([9, 9, 9, 9, 2], itertools.repeat(9)),
        "calm": itertools.repeat(3),
    }
    now = 0.0
    turns = dict.fromkeys(took, 0)

    def way(name: str) -> None:
        nonlocal now
        turns[name] += 1
        if turns[name] > 1:  # the first is a warm-up
            now += next(took[name])

    found = least_seconds((lambda: way("busy"), lambda: way("calm")), lambda: now)
    assert found == [2, 3]
    assert turns["busy"] == 1 + 5 + 5


def test_they_end_though_each_turn_is_quicker():
    now, step = 0.0, 1024.0

    def way() -> None:
        nonlocal now, step
        now, step = now + step, step / 2

    least_seconds((way,), lambda: now)
    assert step == 1024 / 2**41
