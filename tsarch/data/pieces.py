"""Sequences of tokens cut at word boundaries, into pieces of about equal length."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def pieces_of(
    token_ids: list[int], words: list[int], limit: int
) -> list[tuple[list[int], list[int]]]:
    """Cut at word boundaries into pieces of at most `limit` tokens, of about equal length."""
    if len(token_ids) <= limit:
        return [(token_ids, words)]
    begins = [*(place for place, word in enumerate(words) if word >= 0), len(words)]
    sizes = [end - begin for begin, end in itertools.pairwise(begins)]
    ends = itertools.accumulate(_even_fill(sizes, limit), initial=0)
    cuts = [slice(begins[first], begins[last]) for first, last in itertools.pairwise(ends)]
    return [(token_ids[cut], words[cut]) for cut in cuts]


def _even_fill(sizes: Sequence[int], limit: int) -> list[int]:
    """Words of each piece: as few pieces as `limit` allows, the longest as short as can be."""
    num_pieces = len(_fill(sizes, limit))
    low, high = max(sizes), limit
    while low < high:
        middle = (low + high) // 2
        if len(_fill(sizes, middle)) <= num_pieces:
            high = middle
        else:
            low = middle + 1
    return _fill(sizes, low)


def _fill(sizes: Sequence[int], limit: int) -> list[int]:
    """Words of each piece if every piece takes words until the next exceeds `limit`."""
    counts: list[int] = []
    room = 0
    for size in sizes:
        if not counts or size > room:
            counts.append(0)
            room = limit
        counts[-1] += 1
        room -= size
    return counts


def with_breaks(starts: list[int], limit: int) -> list[int]:
    """Words, with those of more than `limit` tokens in parts that start like words of the same
    number."""
    if len(starts) <= limit:
        return starts
    broken, word, since = list(starts), 0, 0
    for place, own in enumerate(starts):
        if own >= 0:
            word, since = own, place
        elif place - since == limit:
            broken[place], since = word, place
    return broken
