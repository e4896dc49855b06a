"""Whether a run takes many rows a step, and so few steps, in which a model learns little."""

from __future__ import annotations

import numpy as np

from tsarch.blueprint import Blueprint
from tsarch.feeds import batch_plan
from tsarch.records import TokenizedSplit

USUAL_WINDOWS = 16
"""Windows of a step that are advised."""
_MANY_WINDOWS = 20
"""Of a step on average, from which on fewer are advised."""
_FEW_STEPS = 200
"""Of a run, below which they are: of 110 a teacher learned 17 points less than of 194, on the same
605 rows (docs/results.md)."""


def few_steps_notes(blueprint: Blueprint, train: TokenizedSplit, epoch_steps: int) -> list[str]:
    """A remark if the run has few steps of many windows, and would have more of `USUAL_WINDOWS`.

    Windows of text without labels don't count: they come beside those of a step.

    Args:
        epoch_steps: steps of an epoch.
    """
    schedule = blueprint.schedule
    steps = epoch_steps * schedule.epochs
    if schedule.max_steps is not None or steps >= _FEW_STEPS:
        return []
    labelled = train.labelled(np.arange(train.num_contexts))
    mean = int(np.diff(train.window_offsets)[labelled].sum()) / epoch_steps
    if mean < _MANY_WINDOWS:
        return []
    smaller = blueprint.altered(data={"batch_windows": USUAL_WINDOWS})
    more = len(batch_plan(smaller, train).block(0, 0)) * schedule.epochs
    if more < steps * mean / _MANY_WINDOWS:  # contexts of many windows are steps by themselves
        return []
    return [
        f"note: the run has {steps} steps, of {mean:.0f} windows on average. Models may learn "
        f"little in so few: with data.batch_windows={USUAL_WINDOWS} there are {more}"
    ]
