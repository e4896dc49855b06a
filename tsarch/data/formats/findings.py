"""What comes of reading beside rows: mistakes, and notes with the splits that they are about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tsarch.data.rows import Place
from tsarch.errors import Mistake

Found = Iterator[tuple[Place, dict[str, Any]]]
"""Raw rows, column → value, as a source holds them."""


@dataclass
class Findings:
    """Collected while rows are read, one split after another."""

    mistakes: list[Mistake] = field(default_factory=list)
    split: str = ""
    """Which is read now; empty: the one that there is."""
    guess: Callable[[], str | None] = lambda: None
    """What the file may be that is read now, should all of it fail."""
    _notes: dict[str, list[str]] = field(default_factory=dict)
    _counts: dict[tuple[str, str], tuple[int, Place]] = field(default_factory=dict)

    def mistake(self, where: object, what: str, hint: str = "") -> None:
        """Something to put right."""
        self.mistakes.append(Mistake(str(where), what, hint))

    def note(self, text: str) -> None:
        """Something that the user should know about the split."""
        splits = self._notes.setdefault(text, [])
        if self.split not in splits:
            splits.append(self.split)

    def count(self, text: str, place: Place) -> None:
        """One of many that a note will count: `{}` becomes their number, then the first place."""
        number, first = self._counts.get((self.split, text), (0, place))
        self._counts[self.split, text] = number + 1, first

    @property
    def notes(self) -> tuple[str, ...]:
        """Each note once, with its splits."""
        named = ((", ".join(splits), text) for text, splits in self._notes.items())
        counted = (
            (split, text.format(f"{number:,}", first))
            for (split, text), (number, first) in self._counts.items()
        )
        return tuple(f"{splits}: {text}" if splits else text for splits, text in (*named, *counted))
