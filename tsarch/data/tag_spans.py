"""Entities in tags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(type, first word, word after the last) of IOB2 tags."""
    start = 0
    for place, tag in enumerate(tags):
        if tag.startswith("B-"):
            start = place
        is_last = place + 1 == len(tags) or not tags[place + 1].startswith("I-")
        if tag != "O" and is_last:
            yield tag[2:], start, place + 1
