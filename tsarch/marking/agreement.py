"""Where modes say the same, and who is right where they don't."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from tsarch.config import Mode
from tsarch.marking.records import Marks


@dataclass(frozen=True)
class Agreement:
    """Two modes, over all units (words, or rows)."""

    one: Mode
    other: Mode
    same: int
    """Units on which they say the same."""
    one_better: int
    """Of those that differ: where the first is right and the second isn't, or less."""
    other_better: int
    neither: int
    """Where both are equally wrong."""


def agreements(marks: Mapping[Mode, Marks]) -> list[Agreement]:
    """Of every two modes."""
    return [_agreement(*pair, marks) for pair in itertools.combinations(marks, 2)]


def _agreement(one: Mode, other: Mode, marks: Mapping[Mode, Marks]) -> Agreement:
    a, b = marks[one], marks[other]
    differ = a.said != b.said
    better = a.worth[differ] - b.worth[differ]
    one_better, other_better = int((better > 0).sum()), int((better < 0).sum())
    num_differ = int(differ.sum())
    return Agreement(
        one,
        other,
        len(differ) - num_differ,
        one_better,
        other_better,
        num_differ - one_better - other_better,
    )
