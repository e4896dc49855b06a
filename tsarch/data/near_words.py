"""Words that are near one another in a table of embeddings, of those that are one token each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsarch.records import FloatArray

FEWEST_LETTERS = 3
MOST_CHOICES = 10
_LEAST_COSINE = 0.5
"""Farther words are no neighbours: MiniLM's table has `rapidly` at 0.63 of `quickly`, `easily` at
0.51, and half of all words have none."""
_BATCH = 256
_DIGITS = 6
"""Of a cosine, computed in double precision: all machines find the same neighbours."""

Near = list[tuple[int, float]]
"""Rows of a table, with their cosines, nearest first."""


class NearWords:
    """Finds the neighbours of words in a table.

    Args:
        table: (rows, width) embeddings.
        words: row → the word that it is of; others are no neighbours.
    """

    def __init__(self, table: FloatArray, words: Mapping[int, str]) -> None:
        self._words = words
        self._known = np.array(sorted(words), dtype=np.int64)
        self._places = {row: place for place, row in enumerate(self._known.tolist())}
        own = table[self._known].astype(np.float64)
        self._units = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)

    def near(self, rows: Sequence[int]) -> list[Near]:
        """Neighbours of known rows by the cosine of their angle, at most `MOST_CHOICES` each; forms
        of the word itself aren't among them."""
        found: list[Near] = []
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            own = self._units[[self._places[row] for row in part]]
            cosines = np.round(own @ self._units.T, _DIGITS)
            found += [self._chosen(*each) for each in zip(part, cosines, strict=True)]
        return found

    def _chosen(self, row: int, cosines: NDArray[np.float64]) -> Near:
        places = np.flatnonzero(cosines >= _LEAST_COSINE)
        order = places[np.argsort(-cosines[places], kind="stable")]
        rows = ((int(self._known[place]), float(cosines[place])) for place in order)
        others = (own for own in rows if not is_same(self._words[own[0]], self._words[row]))
        return list(itertools.islice(others, MOST_CHOICES))


def whole_words(tokenizer: Any) -> dict[str, int]:
    """Words that are one token → its row: letters alone, and not the inside of a word."""
    found: dict[str, int] = {}
    vocabulary = tokenizer.get_vocab()
    marks = word_marks(tokenizer)
    for piece, row in sorted(vocabulary.items(), key=lambda item: item[1]):
        word = piece
        if marks:
            if piece[:1] not in marks:
                continue
            word = piece[1:]
        if len(word) >= FEWEST_LETTERS and word.isalpha():
            found.setdefault(word, row)
    return found


def word_marks(tokenizer: Any) -> set[str]:
    """What pieces at a word's start begin with; none, where pieces inside a word are marked."""
    return {piece[0] for piece in tokenizer.get_vocab() if piece[:1] in ("▁", "Ġ")}


def is_same(one: str, other: str) -> bool:
    """Whether two words are forms of one, by their beginnings."""
    pairs = zip(one.lower(), other.lower(), strict=False)
    shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    shorter, longer = sorted((len(one), len(other)))
    return shared >= max(longer - 2, shorter - 1)
