"""Other words in some places of rows, outside what their labels are about (Wu et al. 2019,
"Conditional BERT Contextual Augmentation")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tsarch.augmentation.labelled_rows import Labelled
from tsarch.augmentation.word_choice import WordChoice, drawn, in_case_of
from tsarch.data.plain_text import word_bounds
from tsarch.seeding import generator

_FEWEST_LETTERS = 3
_TRIES = 3
TASKS = ("ner", "classification", "relation")
"""Those whose rows can be altered so."""


@dataclass(frozen=True)
class _Words:
    """A row's words, and which of them may change."""

    words: list[str]
    bounds: Sequence[tuple[int, int]]
    """Characters of each in a text; of rows that have words none."""
    is_free: list[bool]


def replaced(
    rows: Sequence[Labelled], choice: WordChoice, share: float, seed: int, copy: int
) -> list[Labelled | None]:
    """Rows with other words in a share of the places that may change, one at least; None: nothing
    of a row can."""
    found = [_words(own.row) for own in rows]
    rngs = [_rng(own, seed, copy) for own in rows]
    places = [_tried(own, share, rng) for own, rng in zip(found, rngs, strict=True)]
    asked = [(own.words, n) for own, chosen in zip(found, places, strict=True) for n in chosen]
    said = iter(choice.choices(asked))
    made: list[Labelled | None] = []
    for own, words, chosen, rng in zip(rows, found, places, rngs, strict=True):
        new: dict[int, str] = {}
        for place in chosen:
            choices = next(said)
            if choices and len(new) < _number(words, share):
                new[place] = in_case_of(drawn(choices, rng), words.words[place])
        made.append(replace(own, row=_with(own.row, words, new)) if new else None)
    return made


def _rng(own: Labelled, seed: int, copy: int) -> np.random.Generator:
    return generator(seed, repr(("mask", own.place)), copy)


def _words(row: Any) -> _Words:
    if hasattr(row, "text"):
        bounds = [(int(a), int(b)) for a, b in word_bounds(row.text)]
        words = [row.text[start:stop] for start, stop in bounds]
        fixed: set[int] = set()
    else:
        bounds, words = [], list(row.words)
        fixed = {n for n, tag in enumerate(getattr(row, "tags", ())) if tag != "O"}
        if hasattr(row, "head"):
            words = list(row.tokens)
            fixed = {n for span in (row.head, row.tail) for n in range(*span)}
    free = [
        n not in fixed and word.isalpha() and len(word) >= _FEWEST_LETTERS
        for n, word in enumerate(words)
    ]
    return _Words(words, bounds, free)


def _number(own: _Words, share: float) -> int:
    """Words that change."""
    return max(round(share * len(own.words)), 1)


def _tried(own: _Words, share: float, rng: np.random.Generator) -> list[int]:
    """Places in random order: more than change, since there are words that nothing stands for."""
    free = [n for n, is_free in enumerate(own.is_free) if is_free]
    return rng.permutation(free).tolist()[: _TRIES * _number(own, share)] if free else []


def _with(row: Any, own: _Words, new: dict[int, str]) -> Any:
    if own.bounds:
        text = row.text
        for place, word in sorted(new.items(), reverse=True):
            start, stop = own.bounds[place]
            text = text[:start] + word + text[stop:]
        return replace(row, text=text)
    words = [new.get(n, word) for n, word in enumerate(own.words)]
    return replace(row, tokens=words) if hasattr(row, "head") else replace(row, words=words)
