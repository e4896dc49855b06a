"""Which hidden states travel from which rank to which: the one place that messages come from.

Both ends of the link derive the same routes from a step's plan, so a message carries no list of its
rows. They are told by place in the split's tokens, which no topology changes: a checkpoint keeps
states that are under way by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tsarch.data.context_slices import ContextSlice
from tsarch.data.partition import MicroBatchPlan
from tsarch.records import IntArray, Message, TokenizedSplit


@dataclass(frozen=True)
class Route:
    """States that one rank sends to one other in a micro-batch."""

    source: int
    """Rank (of all stages together) that sends."""
    target: int
    """Rank that receives."""
    places: IntArray
    """(states,) what each state is of, in order of sending: places in the split's tokens, rising,
    or, while texts are generated, texts."""

    def message(self, step: int, micro_batch: int, width: int) -> Message:
        """The states on their way, each `width` numbers."""
        return Message(step, micro_batch, self.source, self.target, len(self.places), width)

    def message_back(self, step: int, micro_batch: int, width: int) -> Message:
        """Their gradients on the way back."""
        return Message(step, micro_batch, self.target, self.source, len(self.places), width)


def routes_of(split: TokenizedSplit, plan: MicroBatchPlan) -> tuple[Route, ...]:
    """All routes of a micro-batch, in the order of (source, target). A state travels once, however
    many windows of a rank it feeds."""
    return tuple(
        Route(source, target, _fed_from(split, windows, plan.slices.get(source)))
        for (source, target), windows in sorted(plan.routes.items())
    )


def _fed_from(split: TokenizedSplit, windows: Sequence[int], held: ContextSlice | None) -> IntArray:
    """Places of the states that windows are fed with, rising; of those that are `held`, unless
    that is all."""
    places = np.unique(np.concatenate([split.window_sources(window) for window in windows]))
    if held is not None:
        return np.intersect1d(places, held.places)
    return places[places >= 0]
