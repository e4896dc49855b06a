"""Sequences that are longer than what is read at a time, in parts.

Parts for training are cut at word boundaries and have every word once. Parts for predictions
overlap, so that no word is read at a cut: each word is answered from the part in which it stands
farthest from an edge.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tsarch.data.passages import strides
from tsarch.data.pieces import pieces_of


@dataclass(frozen=True)
class Part:
    """A part of a sequence of tokens."""

    start: int
    stop: int
    first: int
    """Its first token whose word is answered from it."""
    end: int
    """The token after the last one."""


def parts_of(words: Sequence[int], limit: int, overlap: int) -> list[Part]:
    """Parts of at most `limit` tokens.

    Args:
        words: per token the word that starts here, or −1; no word is longer than `limit`.
        overlap: tokens that neighbours share at most, and at most half of a part; 0: none, and
            the parts are about equally long.
    """
    if len(words) <= limit:
        return [Part(0, len(words), 0, len(words))]
    if not overlap:
        pieces = pieces_of(list(range(len(words))), list(words), limit)
        return [Part(own[0], own[-1] + 1, own[0], own[-1] + 1) for own, _ in pieces]
    places = np.array([*(n for n, word in enumerate(words) if word >= 0), len(words)])
    spans = strides(np.diff(places).tolist(), limit, overlap)
    # The last part is as long as the others: its words have all the more before them.
    spans[-1] = (int(np.searchsorted(places, places[-1] - limit)), spans[-1][1])
    borders = [0]
    for (_, stop), (start, _) in itertools.pairwise(spans):
        middle = (places[start] + places[stop]) // 2
        borders.append(int(np.searchsorted(places[: stop + 1], middle)))
    borders.append(len(places) - 1)
    own = itertools.pairwise(borders)
    return [
        Part(*places[[start, stop, first, end]].tolist())
        for (start, stop), (first, end) in zip(spans, own, strict=True)
    ]
