"""Contexts that several ranks read together: their tokens end to end, in slices of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tsarch.records import IntArray


@dataclass(frozen=True)
class ContextSlice:
    """What one rank reads of some contexts."""

    places: IntArray
    """(tokens,) places in `split.token_ids` of its tokens; the last ranks may have fewer than
    `num_tokens`, or none."""
    positions: IntArray
    """(num_tokens,) place of each token in its context; 0 where there is none."""
    num_tokens: int
    """Size of every rank's slice."""
    lengths: IntArray
    """(contexts,) tokens of the whole contexts; of none one token, so that there is something to
    read."""


def context_slices(contexts: Sequence[IntArray], number: int) -> tuple[ContextSlice, ...]:
    """The slices of `number` ranks that share contexts, whose tokens' places these are."""
    none = np.empty(0, dtype=np.int64)
    places = np.concatenate([none, *contexts])
    positions = np.concatenate([none, *(np.arange(len(own)) for own in contexts)])
    lengths = np.array([len(own) for own in contexts] or [1])
    size = max(-(-len(places) // number), 1)
    padded = np.pad(positions, (0, number * size - len(places)))
    return tuple(
        ContextSlice(
            places[start : start + size],
            padded[start : start + size],
            size,
            lengths,
        )
        for start in range(0, number * size, size)
    )


def holders(slices: Sequence[ContextSlice], places: IntArray) -> list[int]:
    """Which of the slices of some contexts have any of their tokens' `places`, rising."""
    of_all = np.concatenate([own.places for own in slices])
    order = np.argsort(of_all)
    found = order[np.searchsorted(of_all, places, sorter=order)]
    return [int(place) for place in np.unique(found // slices[0].num_tokens)]
