"""What a row of a task's data is once it has been read, and what a task says about its rows."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tsarch.config import ColumnsConfig, DataConfig
from tsarch.errors import Mistake


@dataclass(frozen=True)
class Place:
    """Where a row stands: `FILE:LINE`, or `FILE:row N` where rows aren't lines."""

    source: str
    number: int
    unit: str = ""
    line_per_word: bool = False

    def __str__(self) -> str:
        return self.of_word(0)

    def of_word(self, word: int) -> str:
        """Place of a word of the row."""
        return f"{self.source}:{self.unit}{self.number + word * self.line_per_word}"


@dataclass(frozen=True)
class Row:
    """One row and where it came from."""

    place: Place
    doc_id: str
    sent_id: Any
    tokens: list[str]
    """Words, or the parts of a source."""
    tags: list[str]
    """A label for every word, the row's one label, or the target."""
    focus: int | None = None
    """Word that the row's one label stands before; None: before the first, and at several. Of a
    source: the last part, if the student reads it too."""
    unique_id: str | None = None
    """Id that no other row of the split may have."""
    details: Any = None
    """What packing and metrics need beside words and labels; a task's own."""


Layout = Literal["words", "rows", "passages", "pairs"]
"""A label a word; a label a row; spans of passages, with a `Passage` in `Row.details`; a source and
a target to generate, whose parts and texts stand in `Row.tokens` and `Row.tags`."""


class RowSchema(Protocol):
    """How a task's rows are read, checked and labelled."""

    layout: Layout
    """What becomes of rows in `contexts.py`."""

    def needed(self, columns: ColumnsConfig) -> tuple[str, ...]:
        """Columns that every row must have."""

    def word_lists(self, columns: ColumnsConfig) -> tuple[str, ...]:
        """Columns that hold a list of words (in CSV: JSON, or words between spaces)."""

    def label_column(self, columns: ColumnsConfig) -> str:
        """Column whose class numbers become names."""

    def read(self, place: Place, raw: dict[str, Any], data: DataConfig) -> RowOrMistakes:
        """A sound row, or None, and what is wrong with it."""

    def label_names(self, row: Row) -> Iterable[tuple[str, str]]:
        """(name, place) of what the training split has to have for this row to be learned."""

    def labels(self, names: Iterable[str]) -> tuple[str, ...]:
        """Label ids in order, from the names of the training split."""


_MAX_SHOWN = 200
"""Characters of a row's own words in a message."""
RowOrMistakes = tuple[Row | None, list[Mistake]]


def found(*checks: Mistake | None) -> list[Mistake]:
    """What checks of a row have found wrong."""
    return [mistake for mistake in checks if mistake is not None]


def shown(value: object) -> str:
    """What a row says, in a message: the start of it, if it is long."""
    text = str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def from_json(value: Any) -> Any:
    """A cell that is a JSON text, as it is in CSV, read; everything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def no_column(where: str, name: str, columns: Iterable[str]) -> Mistake:
    """The mistake of a column that isn't there."""
    hint = f"Columns: {shown(', '.join(columns))}. Set data.columns if names differ."
    return Mistake(where, f"has no column `{name}`.", hint)


def check_words(place: Place, raw: dict[str, Any], name: str) -> Mistake | None:
    """What is wrong with a column that should hold a list of strings."""
    if name not in raw:
        return no_column(str(place), name, raw)
    values = raw[name]
    if not isinstance(values, list):
        return Mistake(str(place), f"`{name}` is {reprlib.repr(values)}, not a list of strings.")
    for word, value in enumerate(values):
        if not isinstance(value, str):
            what = f"`{name}` has {reprlib.repr(value)} as item {word + 1}, not a string."
            return Mistake(place.of_word(word), what)
    return None


def check_text(place: Place, raw: dict[str, Any], name: str) -> Mistake | None:
    """What is wrong with a column that should hold a text of at least one word."""
    if name not in raw:
        return no_column(str(place), name, raw)
    value = raw[name]
    if not isinstance(value, str):
        return Mistake(str(place), f"`{name}` is {reprlib.repr(value)}, not a string.")
    if not value.split():
        return Mistake(str(place), f"`{name}` is empty.")
    return None


def check_unicode(place: Place, *texts: str) -> Mistake | None:
    """What is wrong with texts that no UTF-8 file could hold."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return Mistake(str(place), "has half a surrogate pair (\\ud800 … \\udfff).")
    return None


def make_row(
    place: Place,
    raw: dict[str, Any],
    columns: ColumnsConfig,
    tokens: list[str],
    tags: list[str],
    focus: int | None = None,
) -> RowOrMistakes:
    """The row of checked words and labels, its document from `raw`."""
    doc_id = raw.get(columns.doc_id)
    doc_id = str(place if doc_id is None else doc_id)
    if mistakes := found(check_unicode(place, doc_id, *tokens, *tags)):
        return None, mistakes
    return Row(place, doc_id, raw.get(columns.sent_id), tokens, tags, focus), []
