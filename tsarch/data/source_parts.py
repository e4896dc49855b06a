"""A source that is longer than a context has room for, in parts that each fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from tsarch.data.cuts import Span
from tsarch.data.plain_text import sentence_bounds, word_bounds


def source_parts(text: str, tokens: Sequence[Span], most: int) -> list[Span]:
    """Characters [start, stop) of the fewest parts of whole sentences that have `most` tokens each
    at most, about equally many: a short rest by itself says little. A sentence that is longer is
    cut between words, and a word that is longer between tokens.

    Args:
        tokens: characters [start, stop) of the text's tokens.
    """
    # Some tokenizers' tokens begin with the space before a word: where they end is sure.
    stops = np.array([stop for _, stop in tokens], dtype=np.int64)

    def size(span: Span) -> int:
        first, last = np.searchsorted(stops, span, side="right").tolist()
        return int(last - first)

    units = [(span, size(span)) for span in _units(text, tokens, most, size)]
    fewest = len(_filled(units, most))
    low, high = 1, most
    while low < high:  # the smallest room that needs no more parts
        middle = (low + high) // 2
        low, high = (low, middle) if len(_filled(units, middle)) <= fewest else (middle + 1, high)
    return _filled(units, low)


def _units(
    text: str, tokens: Sequence[Span], most: int, size: Callable[[Span], int]
) -> Iterator[Span]:
    """What a text is cut between: sentences, or where one is too long its words, or tokens."""
    for start, stop in sentence_bounds(text):
        if size((start, stop)) <= most:
            yield start, stop
            continue
        for first, last in (word_bounds(text[start:stop]) + start).tolist():
            if size((first, last)) <= most:
                yield first, last
            else:
                yield from (own for own in tokens if first < own[1] <= last)


def _filled(units: Iterable[tuple[Span, int]], most: int) -> list[Span]:
    """Neighbours put together as long as they have `most` tokens at most."""
    parts: list[Span] = []
    room = 0
    for (start, stop), size in units:
        if parts and size <= room:
            parts[-1] = parts[-1][0], stop
        else:
            parts.append((start, stop))
            room = most
        room -= size
    return parts
