"""What marking gives: mistakes, counts of them, and pieces of rows with marks in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from tsarch.data.rows import Row
from tsarch.records import Array
from tsarch.redaction import redact_urls
from tsarch.tasks.chinese import joined

_BODIES = ("tokens", "words", "text", "passage", "source")
"""Where rows have what is read, by tasks."""
_WORDS_AROUND = 18
_CHARACTERS_AROUND = 140


@dataclass(frozen=True)
class Span:
    """A marked part of a row: words, or characters where the row is a text."""

    start: int
    stop: int
    mark: str
    """How it is right or wrong: a `Fault.kind`, `right`, `gold`, or the part's own name."""
    note: str
    """What stands behind it, for people."""


@dataclass(frozen=True)
class Snippet:
    """A piece of a row, as it is shown."""

    text: str
    mark: str = ""
    """See `Span`; empty: not marked."""
    note: str = ""


@dataclass(frozen=True)
class Fault:
    """A mistake of a mode."""

    row: int
    """Place of the row in the split, from 0."""
    kind: str
    score: float
    """How sure the mode was, 0 to 1; of a generated text, how good it is."""
    gold: str
    """What is right, for people."""
    said: str
    """What was said instead."""
    spans: tuple[Span, ...]
    details: dict[str, Any]
    """Further fields of its line in a file."""


@dataclass(frozen=True)
class Counts:
    """A table of counts: what is right by what was said."""

    gold: list[str]
    said: list[str]
    counts: list[list[int]]
    """A row for each of `gold`, with a number for each of `said`."""
    right: list[list[bool]]
    """Which of them are right."""


@dataclass(frozen=True)
class ScoreTable:
    """Scores of every label, or of every kind of row."""

    columns: list[str]
    rows: list[list[Any]]
    """A name, then a value for each column but the first."""


@dataclass(frozen=True)
class Marks:
    """A mode's answers to a split, marked."""

    faults: list[Fault]
    """Those that were surest first; of generated texts the worst first."""
    num_right: int
    counts: Counts | None
    scores: ScoreTable
    said: Array
    """What the mode says of each unit (a word, or a row); equal where modes agree."""
    worth: Array
    """How right it is there: 1 or 0, or a score."""


def place_of(row: Row) -> str:
    """Where a row stands."""
    return redact_urls(str(row.origin.place))


def body_of(row: Any) -> Sequence[str] | str:
    """What of a row is read: its words, or its text."""
    for name in _BODIES:
        if hasattr(row, name):
            own: Sequence[str] | str = getattr(row, name)
            return own
    texts = (getattr(row, own.name) for own in fields(row) if own.name != "origin")
    return "\n".join(text for text in texts if isinstance(text, str))


def snippets(row: Sequence[str] | str, spans: Sequence[Span]) -> list[Snippet]:
    """A row, or the parts around its spans where it is long, with what is marked."""
    around = _CHARACTERS_AROUND if isinstance(row, str) else _WORDS_AROUND
    spans = sorted(spans, key=lambda own: (own.start, own.stop))
    found: list[Snippet] = []
    here = 0
    for span in spans:
        found += _between(row, here, max(span.start, here), around, not found)
        found.append(Snippet(_text(row[span.start : span.stop]), span.mark, span.note))
        here = max(here, span.stop)
    return found + _end(row, here, around if spans else 2 * around)


def _between(
    row: Sequence[str] | str, start: int, stop: int, around: int, is_first: bool
) -> list[Snippet]:
    if start == stop:
        return []
    if is_first:
        cut = max(start, stop - around)
        return [Snippet(("… " if cut > start else "") + _text(row[cut:stop]))]
    if stop - start <= 2 * around:
        return [Snippet(_text(row[start:stop]))]
    parts = row[start : start + around], row[stop - around : stop]
    return [Snippet(" … ".join(map(_text, parts)))]


def _end(row: Sequence[str] | str, start: int, around: int) -> list[Snippet]:
    rest = row[start : start + around]
    more = " …" if len(row) > start + around else ""
    return [Snippet(_text(rest) + more)] if rest else []


def _text(part: Sequence[str] | str) -> str:
    return part if isinstance(part, str) else joined(list(part))
