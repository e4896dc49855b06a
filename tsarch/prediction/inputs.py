"""What users give to predict, as rows of the task: plain texts, lists of words, or rows."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsarch.data.formats.delimited import unpacked
from tsarch.data.plain_text import sentence_bounds, word_bounds
from tsarch.data.row_reader import RowReader
from tsarch.errors import Mistake, UserError
from tsarch.records import IntArray

Input = str | Sequence[str] | Mapping[str, Any]
"""A plain text, its words, or a row: column → value."""
_TEXT_COLUMNS = ("text", "source", "document")
"""Columns (by their own names, not the file's) that a plain text can be, in tasks that need one
column alone."""


@dataclass(frozen=True)
class PlainText:
    """An input that was a plain text, split into sentences of words."""

    text: str
    bounds: tuple[IntArray, ...]
    """Of each sentence (words, 2) characters [start, stop) of its words."""


@dataclass(frozen=True)
class Inputs:
    """Inputs as raw rows, in order."""

    rows: list[dict[str, Any]]
    owners: list[int]
    """Input that a row is a part of."""
    texts: dict[int, PlainText]
    """Of the inputs that were plain texts of a task of words."""
    count: int


def as_rows(given: Iterable[Input], task: str, reader: RowReader[Any]) -> Inputs:
    """Rows without labels of all inputs.

    Raises:
        UserError: names every input that the task can't take.
    """
    found = Inputs([], [], {}, 0)
    mistakes: list[Mistake] = []
    number = -1
    for number, own in enumerate(given):
        try:
            rows = _rows(own, number, task, reader, found.texts)
        except UserError as error:
            mistakes += error.mistakes
            continue
        found.rows.extend(rows)
        found.owners.extend([number] * len(rows))
    if mistakes:
        raise UserError(mistakes)
    return Inputs(found.rows, found.owners, found.texts, number + 1)


def _rows(
    own: Input, number: int, task: str, reader: RowReader[Any], texts: dict[int, PlainText]
) -> list[dict[str, Any]]:
    where = f"input {number + 1}"
    if isinstance(own, Mapping):
        return [_completed(dict(own), number, task, reader)]
    if isinstance(own, str):
        if task == "ner":
            return _sentences(own, number, where, reader, texts)
        return [{_text_column(where, task, reader): own}]
    if not isinstance(own, Sequence) or not all(isinstance(word, str) for word in own):
        hint = "Give a text, a list of words, or a row (column → value)."
        raise UserError.single(where, f"is {reprlib.repr(own)}.", hint)
    if len(reader.needed) != 1 or not reader.word_lists:
        what = f"is a list of strings, which {task} doesn't take."
        raise UserError.single(where, what, _wanted(reader))
    return [{reader.word_lists[0]: list(own)}]


def _sentences(
    text: str, number: int, where: str, reader: RowReader[Any], texts: dict[int, PlainText]
) -> list[dict[str, Any]]:
    """The sentences of a document that is a plain text, a row each."""
    names = reader.columns.model_dump()
    bounds, rows = [], []
    for place, (start, stop) in enumerate(sentence_bounds(text)):
        own = word_bounds(text[start:stop]) + start
        bounds.append(own)
        words = [text[first:last] for first, last in own.tolist()]
        # Numbered names: whatever else is predicted at the same time is another document.
        rows.append({names["tokens"]: words, names["doc_id"]: f"{where}", names["sent_id"]: place})
    if not rows:
        raise UserError.single(where, "is empty.")
    texts[number] = PlainText(text, tuple(bounds))
    return rows


def _completed(
    row: dict[str, Any], number: int, task: str, reader: RowReader[Any]
) -> dict[str, Any]:
    """A row with its lists of words as lists (tables have them in cells), and with an id, where the
    task wants one and nobody cares."""
    for column in reader.word_lists:
        if isinstance(row.get(column), str):
            row[column] = unpacked(row[column])
    name = reader.columns.model_dump().get("id") if task == "qa" else None
    return row if name is None else {name: f"input {number + 1}", **row}


def _text_column(where: str, task: str, reader: RowReader[Any]) -> str:
    """The one column that a plain text can be."""
    columns = reader.columns.model_dump()
    for own in _TEXT_COLUMNS:
        if own in columns and reader.needed == (columns[own],):
            return str(columns[own])
    raise UserError.single(where, f"is a text, but {task} needs a row.", _wanted(reader))


def _wanted(reader: RowReader[Any]) -> str:
    return f"Give rows with the columns {', '.join(reader.needed)}."
