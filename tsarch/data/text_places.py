"""Where the tokens of a text stand in it: from a tokenizer's offsets to the parts that the text is
made of, and to the tokens at which its words start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tsarch.records import IntArray

UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f]"
)
"""Letters of scripts that put no spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, kana and
Chinese characters."""


_NO_SPACE = re.compile(r"\S*")


@dataclass(frozen=True)
class PlacedTokens:
    """A tokenised text."""

    text: str
    token_ids: list[int]
    starts: list[int]
    """Character that each token starts at, spaces left out."""
    stops: list[int]
    """The character after its last; its start, if it is nothing but space."""


@dataclass(frozen=True)
class Parts:
    """A text in the parts that its tokens stand for: a token each, tokens of nothing but space with
    what they stand before. Parts of one character, which may have several tokens, overlap."""

    begins: list[int]
    """First token of each part."""
    bounds: IntArray
    """(parts, 2) characters [start, stop) of each; with characters that no token stands for."""

    def tokens(self, token_ids: Sequence[int]) -> list[list[int]]:
        """The tokens of each part."""
        ends = [*self.begins[1:], len(token_ids)]
        return [list(token_ids[a:b]) for a, b in zip(self.begins, ends, strict=True)]

    def covering(self, start: int, stop: int) -> tuple[int, int] | None:
        """First and last of the fewest parts that have all of the characters [start, stop) that
        tokens stand for; None: there are no such characters."""
        first = int(np.searchsorted(self.bounds[:, 1], start, side="right"))
        last = int(np.searchsorted(self.bounds[:, 0], stop, side="left")) - 1
        return (first, last) if first <= last else None


def parts_of(placed: PlacedTokens) -> Parts:
    """The parts of a text, which has one at least if it has a token."""
    begins: list[int] = []
    bounds: list[list[int]] = []
    waiting = None
    for place, (start, stop) in enumerate(zip(placed.starts, placed.stops, strict=True)):
        if start == stop:
            waiting = place if waiting is None else waiting
            continue
        begins.append(place if waiting is None else waiting)
        bounds.append([start, stop])
        waiting = None
    if not bounds and placed.token_ids:
        begins, bounds = [0], [[0, len(placed.text)]]
    ends = [*(start for start, _ in bounds[1:]), len(placed.text)]
    for own, end in zip(bounds, ends, strict=True) if bounds else ():
        dropped = _NO_SPACE.match(placed.text, own[1], max(own[1], end))
        own[1] = dropped.end() if dropped else own[1]
    return Parts(begins, np.array(bounds, dtype=np.int64).reshape(-1, 2))


def word_starts(placed: PlacedTokens) -> list[int]:
    """For every token the word that starts there, or −1. Words are what stands between spaces; in
    scripts that have none, every part is one."""
    parts, text = parts_of(placed), placed.text
    starts = [-1] * len(placed.token_ids)
    num_words = 0
    bounds = parts.bounds.tolist()
    for begin, before, own in zip(parts.begins, [None, *bounds], bounds):
        if before is None or _is_border(text, before[1], own[0]):
            starts[begin] = num_words
            num_words += 1
    return starts


def _is_border(text: str, stop: int, start: int) -> bool:
    """Whether words end and start here, between the parts that stop and start here."""
    if start != stop:
        return start > stop
    return bool(UNSPACED.match(text[stop - 1]) or UNSPACED.match(text[start]))
