"""Which tokens of a row with marked spans are kept where a context has no room for all."""

from __future__ import annotations

from collections.abc import Sequence

Slice = tuple[int, int]
"""Tokens [start, stop)."""


def slices_around(starts: Sequence[int], spans: Sequence[Slice], room: int) -> list[Slice] | None:
    """One slice with all spans in its midst, where it has room for them and what is between;
    else one around each of the first and the last, with what is between them left out. None: the
    spans alone are longer.

    Args:
        starts: per token the word that starts here, or −1: slices begin and end with words.
        spans: words [start, stop), at least one.
        room: tokens of all slices together.
    """
    places = {word: place for place, word in enumerate(starts) if word >= 0}
    ends = [places.get(stop, len(starts)) for _, stop in spans]
    tokens = _merged(sorted(zip([places[start] for start, _ in spans], ends, strict=True)))
    first, last = tokens[0], tokens[-1]
    if last[1] - first[0] <= room:
        return [_grown(starts, (first[0], last[1]), room - (last[1] - first[0]))]
    sizes = [stop - start for start, stop in (first, last)]
    if len(tokens) == 1 or sum(sizes) > room:
        return None
    spare = room - sum(sizes)
    before, after = min(spare // 4, first[0]), min(spare // 4, len(starts) - last[1])
    inner = (spare - before - after) // 2
    return [
        _whole_words(starts, (first[0] - before, first[1] + inner), first),
        _whole_words(starts, (last[0] - inner, last[1] + after), last),
    ]


def _merged(spans: Sequence[Slice]) -> list[Slice]:
    """Spans, in order, that overlap or touch as one."""
    merged: list[Slice] = []
    for start, stop in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


def _grown(starts: Sequence[int], own: Slice, spare: int) -> Slice:
    """A slice with what fits of the row on both sides of it."""
    before = min(spare // 2, own[0])
    after = min(spare - before, len(starts) - own[1])
    before = min(spare - after, own[0])
    return _whole_words(starts, (own[0] - before, own[1] + after), own)


def _whole_words(starts: Sequence[int], own: Slice, kept: Slice) -> Slice:
    """A slice without the parts of words at its ends, but with all of `kept`."""
    start, stop = own
    while start < kept[0] and starts[start] < 0:
        start += 1
    while kept[1] < stop < len(starts) and starts[stop] < 0:
        stop -= 1
    return start, stop
