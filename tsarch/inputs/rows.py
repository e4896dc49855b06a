"""What users give to predict, as rows of the task: plain texts, lists of words, or rows."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tsarch.data.formats.delimited import unpacked
from tsarch.data.plain_text import sentence_bounds, word_bounds
from tsarch.data.row_reader import RowReader
from tsarch.data.rows import Place, check_unicode
from tsarch.errors import UserError
from tsarch.inputs.given import plain
from tsarch.records import IntArray, TokenizedSplit
from tsarch.tasks.answers import Answer, Entity, GeneratedText
from tsarch.tasks.chinese import joined

Input = str | Sequence[str] | Mapping[str, Any]
"""A plain text, its words, or a row: column → value."""
_TEXT_COLUMNS = ("text", "source", "document")
"""Columns (by their own names, not the file's) that a plain text can be, in tasks that need one
column alone."""


@dataclass(frozen=True)
class TextEntity:
    """A named entity of a plain text."""

    type: str
    start: int
    """Its first character."""
    end: int
    """The character after its last."""
    text: str
    """As it stands there."""
    score: float
    """Mean probability of its words' tags, 0 to 1."""


Prediction = Answer | TextEntity


@dataclass(frozen=True)
class Gap:
    """A part of an input that wasn't read."""

    what: str
    """Which and why, in words."""
    start: int
    """Its first character of `of`, or word."""
    stop: int
    """The one after its last."""
    of: str
    """What is counted: `words` of a row that has words, or characters of a `text` (as it was
    given), `question`, `context` or `source` (its parts with a line break between them)."""


@dataclass(frozen=True)
class PartlyRead:
    """The answer to an input that couldn't be read whole, and what of it wasn't read."""

    answer: Prediction | tuple[Prediction, ...]
    unread: tuple[Gap, ...]


Predicted = Prediction | tuple[Prediction, ...] | PartlyRead
"""Of an input: its entities in order, none or many; of all other tasks one answer."""


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
    problems: dict[int, str]
    """Of the inputs that can't be read: why."""

    def without(self, problems: dict[int, str]) -> Inputs:
        """The same without some of the inputs."""
        kept = [place for place, owner in enumerate(self.owners) if owner not in problems]
        rows = [self.rows[place] for place in kept]
        owners = [self.owners[place] for place in kept]
        return Inputs(rows, owners, self.texts, self.problems | problems)

    def with_problems(self, problems: Mapping[int, str]) -> Inputs:
        """The same with what is wrong with some rows, by their numbers (from 1 on)."""
        own = {self.owners[number - 1]: what for number, what in problems.items()}
        return replace(self, problems=self.problems | own)

    def owner(self, row: Any) -> int:
        """The input that a row, as the task reads it, is a part of."""
        number: int = row.origin.place.number
        return self.owners[number - 1]

    def answers(
        self, found: Iterable[tuple[TokenizedSplit, Sequence[tuple[Answer, ...]]]]
    ) -> dict[int, Predicted]:
        """Input → its answer, put together from answers to the rows of splits."""
        by_part: dict[int, list[tuple[Answer, ...]]] = {}
        for split, said in found:
            for part, answer in zip(split.rows, said, strict=True):
                by_part.setdefault(part.origin.place.number - 1, []).append(answer)
        by_row = {row: _whole(parts) for row, parts in by_part.items()}
        answers: dict[int, Predicted] = {}
        for number, rows in itertools.groupby(sorted(by_row), key=self.owners.__getitem__):
            own = [by_row[row] for row in rows]
            if text := self.texts.get(number):
                answers[number] = tuple(_in_text(text, own))
            elif len(own[0]) == 1 and not isinstance(own[0][0], Entity):
                answers[number] = own[0][0]
            else:
                answers[number] = own[0]
        return answers


def _whole(parts: Sequence[tuple[Answer, ...]]) -> tuple[Answer, ...]:
    """The answer to a row, of which some were read in several parts."""
    if len(parts) == 1:
        return parts[0]
    texts = [own for answer in parts for own in answer if isinstance(own, GeneratedText)]
    score = sum(own.score for own in texts) / len(texts)
    return (GeneratedText(joined([own.text for own in texts]), score, len(texts)),)


def _in_text(text: PlainText, answers: Sequence[tuple[Answer, ...]]) -> Iterator[TextEntity]:
    """Entities of a text's sentences by their characters in it."""
    for bounds, own in zip(text.bounds, answers, strict=True):
        for entity in own:
            assert isinstance(entity, Entity)
            start, end = int(bounds[entity.first, 0]), int(bounds[entity.stop - 1, 1])
            yield TextEntity(entity.type, start, end, text.text[start:end], entity.score)


def as_document(document: str | Sequence[Input], task: str, reader: RowReader[Any]) -> Inputs:
    """Rows without labels of one document, given as a text or as its sentences.

    Raises:
        UserError: it has none.
    """
    if isinstance(document, str) and task == "ner":
        return as_rows([document], task, reader)
    sentences = [document] if isinstance(document, str) else document
    own = as_rows(sentences, task, reader)
    if not own.rows and not own.problems:
        raise UserError.single("document", "has no sentences.")
    name = reader.columns.model_dump()["doc_id"]
    rows = [{**row, name: "document"} for row in own.rows]
    return Inputs(rows, own.owners, own.texts, own.problems)


def as_rows(given: Iterable[Input], task: str, reader: RowReader[Any]) -> Inputs:
    """Rows without labels of all inputs; what the task can't take goes to `problems`."""
    found = Inputs([], [], {}, {})
    for number, own in enumerate(given):
        try:
            rows = _rows(plain(own), number, task, reader, found.texts)
        except UserError as error:
            found.problems[number] = told(error)
            continue
        found.rows.extend(rows)
        found.owners.extend([number] * len(rows))
    return found


def told(error: UserError) -> str:
    """What is wrong with an input, without its place."""
    return " ".join(f"{own.what} {own.hint}".strip() for own in error.mistakes)


def _rows(
    own: Input, number: int, task: str, reader: RowReader[Any], texts: dict[int, PlainText]
) -> list[dict[str, Any]]:
    where = f"input {number + 1}"
    if isinstance(own, Mapping):
        text = own.get(_TEXT_COLUMNS[0])
        if task == "ner" and isinstance(text, str) and not set(reader.needed) & own.keys():
            return _sentences(text, number, where, reader, texts)
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
    if mistake := check_unicode(Place(where, 1), text):
        raise UserError([mistake])
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


def takes_texts(task: str, reader: RowReader[Any]) -> bool:
    """Whether a plain text can be an input."""
    columns = reader.columns.model_dump()
    named = (columns[own] for own in _TEXT_COLUMNS if own in columns)
    return task == "ner" or any(reader.needed == (name,) for name in named)


def _text_column(where: str, task: str, reader: RowReader[Any]) -> str:
    """The one column that a plain text can be."""
    columns = reader.columns.model_dump()
    for own in _TEXT_COLUMNS:
        if own in columns and reader.needed == (columns[own],):
            return str(columns[own])
    raise UserError.single(where, f"is a text, but {task} needs a row.", _wanted(reader))


def _wanted(reader: RowReader[Any]) -> str:
    return f"Give rows with the columns {', '.join(reader.needed)}."
