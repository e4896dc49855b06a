"""Windows of chosen words, in place of those that a split has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tsarch.data.pieces import pieces_of
from tsarch.records import IntArray, TokenizedSplit, Windows


def window_slices(split: TokenizedSplit, words: IntArray, max_tokens: int) -> Windows:
    """Windows of at most `max_tokens` tokens that have just the `words`, of all sentences in them
    together, in place of a window a sentence."""
    slices: list[tuple[int, int]] = []
    offsets = [0]
    for context in range(split.num_contexts):
        own = range(*split.window_offsets[context : context + 2].tolist())
        starts, stops = _chosen_runs(split, [split.windows[number] for number in own], words)
        for start, stop in zip(starts, stops, strict=True):
            places = list(range(start, stop))
            for piece, _ in pieces_of(places, split.words[start:stop].tolist(), max_tokens):
                slices.append((piece[0], piece[-1] + 1))
        offsets.append(len(slices))
    return Windows(np.array(slices, dtype=np.int64).reshape(-1, 2), np.array(offsets))


def _chosen_runs(
    split: TokenizedSplit, windows: Sequence[IntArray], words: IntArray
) -> tuple[list[int], list[int]]:
    """Starts and stops of the runs of tokens of a context's windows that belong to the words."""
    wanted = set(words.tolist())
    chosen = {
        place
        for start, stop in windows
        for place, word in zip(
            range(start, stop), _filled(split.words[start:stop].tolist()), strict=True
        )
        if word in wanted
    }
    starts = sorted(own for own in chosen if own - 1 not in chosen)
    stops = sorted(own + 1 for own in chosen if own + 1 not in chosen)
    return starts, stops


def _filled(words: Sequence[int]) -> list[int]:
    """Each token's word, from the words that start at tokens."""
    filled: list[int] = []
    for own in words:
        filled.append(filled[-1] if own == -1 and filled else own)
    return filled
