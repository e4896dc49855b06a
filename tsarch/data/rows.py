"""What every row of data has, and the checks that readers share."""

from __future__ import annotations

import ast
import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tsarch.config import Columns
from tsarch.errors import Mistake


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands: `FILE:LINE`, or `FILE:row N` where rows aren't lines."""

    source: str
    number: int
    unit: str = ""
    line_per_word: bool = False
    part: tuple[int, ...] = ()
    """Which of several rows that stand there, or are made of what does."""

    @property
    def name(self) -> str:
        """What no other row is called."""
        return "/".join([str(self), *map(str, self.part)])

    def __str__(self) -> str:
        return self.of_word(0)

    def of_word(self, word: int) -> str:
        """Place of a word of the row."""
        return f"{self.source}:{self.unit}{self.number + word * self.line_per_word}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row comes from and how it is called."""

    place: Place
    doc_id: str
    """Document that it is a part of; rows of one document stand together."""
    sent_id: Any = None
    """Its place in the document, where the data names it."""
    unique_id: str | None = None
    """Id that no other row of the split may have."""


class DocumentColumns(Columns):
    """Columns of rows that are sentences of documents."""

    doc_id: str = "doc_id"
    """Column that names the document of a sentence. Absent: every row is its own document."""
    sent_id: str = "sent_id"
    """Column with the sentence's place in its document. Absent: the order of the rows."""


class Row(Protocol):
    """A task's own frozen dataclass. `origin` is left out of its `repr`, from which runs that go on
    tell that the data is still the same, wherever it stands now."""

    @property
    def origin(self) -> Origin:
        """Where it comes from."""

    @property
    def num_words(self) -> int:
        """Words of its own, as a person counts them."""

    @property
    def num_labels(self) -> int:
        """Labels that it gives: tags, a label, answers, or target texts."""


_MAX_SHOWN = 200
"""Characters of a row's own words in a message."""


def found(*checks: Mistake | None) -> list[Mistake]:
    """What checks of a row have found wrong."""
    return [mistake for mistake in checks if mistake is not None]


def shown(value: object) -> str:
    """What a row says, in a message: the start of it, if it is long."""
    text = str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def is_absent(value: Any) -> bool:
    """Whether a cell of an optional column says nothing: it isn't there, empty or no number."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def from_json(value: Any) -> Any:
    """A cell that is a JSON text, as it is in CSV, or a list or dict as Python prints it, read;
    everything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    if value.lstrip()[:2] in ("['", "{'", "[{"):
        try:
            return ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            pass
    return value


def no_column(where: str, name: str, columns: Iterable[str]) -> Mistake:
    """The mistake of a column that isn't there; of a row also what lies inside its columns."""
    names = list(columns)
    if isinstance(columns, Mapping):
        names = [own for key, value in columns.items() for own in _inside(key, value)]
    hint = f"Columns: {shown(', '.join(names))}. Set data.columns if names differ."
    return Mistake(where, f"has no column `{name}`.", hint)


def _inside(key: str, value: Any) -> list[str]:
    """A column, or its parts: `translation.en`, `translation.de`."""
    return [f"{key}.{part}" for part in value] if isinstance(value, dict) and value else [key]


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


def with_named_label(raw: dict[str, Any], name: str) -> None:
    """Put the plain text in place of a label that is a number, true or false, or a list of one."""
    value = raw.get(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        value = json.dumps(value)
    if isinstance(value, str):
        raw[name] = value


def check_unicode(place: Place, *texts: str) -> Mistake | None:
    """What is wrong with texts that no UTF-8 file could hold."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return Mistake(str(place), "has half a surrogate pair (\\ud800 … \\udfff).")
    return None


def read_origin(place: Place, raw: dict[str, Any], columns: DocumentColumns) -> Origin:
    """Document and sentence of a row that may be part of a document."""
    doc_id, sent_id = raw.get(columns.doc_id), raw.get(columns.sent_id)
    doc_id = place.name if is_absent(doc_id) else str(doc_id)
    return Origin(place, doc_id, None if is_absent(sent_id) else sent_id)
