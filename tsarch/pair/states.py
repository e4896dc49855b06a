"""What passes between a pair and whoever asks it: tokens in, numbers out. No torch: a pair may
compute with NumPy's arrays alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tsarch.records import FloatArray, IntArray

BoolArray = NDArray[np.bool_]
Numbers = Any
"""A tensor of torch, or an array of NumPy of a pair that computes without torch."""


@dataclass(frozen=True)
class Tokens:
    """Sequences of tokens, padded on the right to the longest."""

    places: IntArray
    """(batch, tokens) places of their rows, see `Lookup`."""
    mask: IntArray
    """(batch, tokens) 1 at tokens, 0 at padding."""
    types: IntArray | None = None
    """(batch, tokens) types of the tokens; None: all 0."""

    @classmethod
    def padded(
        cls, sequences: Sequence[IntArray], types: Sequence[IntArray | None] | None = None
    ) -> Tokens:
        """Of one array a sequence, and of the types of each."""
        shape = len(sequences), max(map(len, sequences))
        places, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, own in enumerate(sequences):
            places[row, : len(own)] = own
            mask[row, : len(own)] = 1
        return cls(places, mask, _padded_types(types or (), shape))


@dataclass(frozen=True)
class States:
    """What a teacher makes of contexts."""

    hidden: Numbers
    """(batch, tokens, teacher_width)."""
    predictions: Numbers
    """(batch, tokens, outputs) the teacher's own; (n, vocabulary) logits where they were asked for
    at n positions of a model that gives logits itself."""
    shown: Numbers | None = None
    """(batch, tokens, widths of all) what it shows of its inside while it trains, if it does."""

    @property
    def num_bytes(self) -> int:
        """Of all numbers."""
        return int(self.hidden.nbytes + self.predictions.nbytes)

    def copied(self) -> States:
        """The same numbers by themselves, not as a part of what was read with them."""
        return States(_copy(self.hidden), _copy(self.predictions))


def _copy(numbers: Numbers) -> Numbers:
    return numbers.copy() if isinstance(numbers, np.ndarray) else numbers.clone()


@dataclass(frozen=True)
class Window:
    """What the student reads."""

    token_ids: IntArray
    """(tokens,)."""
    hidden: Numbers | None = None
    """(fed tokens, teacher_width) the teacher's states of these tokens; None: the student alone."""
    types: IntArray | None = None
    """(tokens,) types of the tokens (`TokenizedSplit.token_types`); None: all 0."""
    fed: BoolArray | None = None
    """(tokens,) whether a state feeds each token, where there are any; None: all."""

    @property
    def fed_places(self) -> IntArray:
        """(fed tokens,) places of the tokens that the states feed."""
        number = len(self.token_ids)
        return np.arange(number) if self.fed is None else np.flatnonzero(self.fed)


class Reads(Protocol):
    """A pair as it is asked: `Pair`, or one that computes without torch."""

    @property
    def has_teacher(self) -> bool:
        """Whether it can `encode`."""

    @property
    def has_student(self) -> bool:
        """Whether it can `read`."""

    def encode(
        self,
        contexts: Sequence[IntArray],
        starts: IntArray | None = None,
        types: Sequence[IntArray | None] | None = None,
    ) -> list[States]:
        """The teacher's states of each context, see `Pair.encode`."""

    def own(self, states: States) -> States:
        """States that were kept, whose arrays may be another library's, as this pair's are."""

    def read(self, windows: Sequence[Window]) -> list[Numbers]:
        """The student's (tokens, outputs) predictions of each window."""

    def survey(self, windows: Sequence[Window]) -> list[FloatArray]:
        """(tokens,) scores of each fed window, see `SliceScorer`, by a student that has one."""


def _padded_types(types: Sequence[IntArray | None], shape: tuple[int, int]) -> IntArray | None:
    if all(own is None for own in types):
        return None
    padded = np.zeros(shape, dtype=np.int64)
    for row, own in enumerate(types):
        if own is not None:
            padded[row, : len(own)] = own
    return padded
