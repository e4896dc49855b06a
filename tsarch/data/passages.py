"""Questions and the passages that may answer them: their tokens, and slices of passages."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tsarch.data.rows import Origin
from tsarch.data.words import num_words
from tsarch.records import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CharSpan = tuple[int, int]
"""Characters [start, stop) of an answer."""
WordSpan = tuple[int, int]
"""First and last word of an answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the passage that may answer it."""

    origin: Origin = field(repr=False)
    question: str
    passage: str
    answers: tuple[str, ...] | None
    """Right answers; none: it has none; None: not known."""
    spans: tuple[CharSpan, ...] | None
    """Where each answer stands in the passage; the first answer is the one that is learned."""

    @property
    def num_words(self) -> int:
        """Of the question and its passage."""
        return num_words(self.question, self.passage)

    @property
    def num_labels(self) -> int:
        """The right answers."""
        return len(self.answers or ())


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens."""

    context: int
    window: int
    overlap: int
    """What neighbouring contexts of a passage share."""


@dataclass(frozen=True)
class Specials:
    """Tokens around and between a question and its passage."""

    before: list[int]
    between: list[int]
    after: list[int]


@dataclass(frozen=True)
class PairTypes:
    """Types of the tokens of a pair of texts (BERT's segments, `token_type_ids`)."""

    before: list[int]
    question: int
    between: list[int]
    passage: int
    after: list[int]


@dataclass(frozen=True)
class PassageTokens:
    """A tokenised row. Words of a passage are its `Parts`: mostly a token each."""

    question: list[int]
    words: list[list[int]]
    """Tokens of each of the passage's words."""
    bounds: IntArray
    """(words, 2) characters [start, stop) of each in the passage."""


def pair_specials(tokenizer: PreTrainedTokenizerBase) -> tuple[Specials, PairTypes | None]:
    """What the tokenizer puts around and between two texts, and the types that it gives to their
    tokens, if it gives them any."""
    encoded = tokenizer("a", "a")
    ids, owners = list(encoded["input_ids"]), encoded.sequence_ids()
    first = [place for place, owner in enumerate(owners) if owner == 0]
    second = [place for place, owner in enumerate(owners) if owner == 1]
    before, after = slice(first[0]), slice(second[-1] + 1, None)
    between = slice(first[-1] + 1, second[0])
    specials = Specials(ids[before], ids[between], ids[after])
    types = encoded.get("token_type_ids")
    if types is None or not any(types):
        return specials, None
    parts = types[before], types[first[0]], types[between], types[second[0]], types[after]
    return specials, PairTypes(*parts)


def strides(sizes: Sequence[int], room: int, overlap: int) -> list[tuple[int, int]]:
    """Words [first, stop) of the parts of at most `room` tokens that a passage is read in.

    Neighbours share at most `overlap` tokens, and at most half of a part.
    """
    places = np.array([0, *itertools.accumulate(sizes)])
    parts = []
    first = 0
    while True:
        stop = filled(places, first, room)
        parts.append((first, stop))
        if stop == len(sizes):
            return parts
        shared = min(overlap, int(places[stop] - places[first]) // 2)
        # The next word must fit too, or the next part would end where this one does.
        least = max(places[stop] - shared, places[stop + 1] - room)
        first = max(int(np.searchsorted(places, least)), first + 1)


def window_of(places: IntArray, span: tuple[int, int], wanted: int, room: int) -> tuple[int, int]:
    """Words [start, stop) of a window of at most `room` tokens that has all of a span.

    Args:
        places: (words + 1,) where words start and the last ends.
        span: first and last word, no longer than `room`.
        wanted: where the window should start; it starts where that keeps it full, if it can be.
        room: its length in tokens.
    """
    first, last = span
    lowest = max(int(places[last + 1]) - room, int(places[0]))
    highest = min(int(places[first]), max(int(places[-1]) - room, lowest))
    start = int(np.searchsorted(places, min(max(wanted, lowest), highest)))
    return start, filled(places, start, room)


def filled(places: IntArray, start: int, room: int) -> int:
    """Word before which `room` tokens from the word `start` on end."""
    return int(np.searchsorted(places, places[start] + room, side="right")) - 1
