"""Rows of a task with their labels, taken from inputs, and put into files again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tsarch.config import DataConfig
from tsarch.data.formats.delimited import unpacked
from tsarch.data.formats.findings import Findings
from tsarch.data.row_reader import RowReader
from tsarch.data.rows import Place
from tsarch.errors import UserError
from tsarch.inputs.files import FileInput
from tsarch.inputs.rows import told
from tsarch.tasks.answers import Answer, Entity, GeneratedText, Label, Relation, SpanAnswer
from tsarch.tasks.registry import row_reader

if TYPE_CHECKING:
    from tsarch.prediction.trained_pair import TrainedPair


@dataclass(frozen=True)
class Labelled:
    """A row with labels, and the input that it was made of."""

    number: int
    """Of the input, in its piece."""
    place: str
    """Of the input."""
    row: Any
    """Of the task's own type."""
    doc_id: str | None = None
    """Document that it is a part of; None: it stands by itself."""
    sent_id: Any = None
    """Its place there."""


class RowFile:
    """How a task's labelled rows are read and written, with a pair's columns."""

    def __init__(self, pair: TrainedPair) -> None:
        self._task = pair.task
        self._columns = pair.columns
        self._ends_inclusive = pair.span_ends == "inclusive"
        self._data = DataConfig(columns=pair.columns, span_ends=pair.span_ends, odd_words="keep")

    @cached_property
    def reader(self) -> RowReader[Any]:
        """Of rows with labels."""
        return row_reader(self._task, self._data)

    def read(self, inputs: Sequence[FileInput]) -> tuple[list[Labelled], dict[int, str]]:
        """The rows that inputs are, and number of an input → what is wrong with it."""
        found, problems = [], {}
        for number, given in enumerate(inputs):
            if given.value is None:
                problems[number] = given.problem
                continue
            if not isinstance(given.value, dict):
                problems[number] = f"is a text: this needs rows with {self._needed}."
                continue
            raw = dict(given.value)
            for column in self.reader.word_lists:
                if isinstance(raw.get(column), str):
                    raw[column] = unpacked(raw[column])
            row, mistakes = self.reader.read(Place("input", number), raw)
            if row is None:
                problems[number] = told(UserError(mistakes))
            else:
                found.append(row)
        findings = Findings()
        rows = self.reader.complete(found, "input", findings)
        for mistake in findings.mistakes:
            own = mistake.where.rpartition(":")[2]  # else it is one of all of them together
            every = [int(own)] if own.isdecimal() else [row.origin.place.number for row in found]
            for number in every:
                problems.setdefault(number, f"{mistake.what} {mistake.hint}".strip())
        made = [self._placed(row, inputs) for row in rows]
        return [own for own in made if own.number not in problems], problems

    @property
    def _needed(self) -> str:
        return ", ".join(self.reader.needed)

    def _placed(self, row: Any, inputs: Sequence[FileInput]) -> Labelled:
        number = row.origin.place.number
        given = inputs[number]
        return Labelled(number, given.place, row, given.document, row.origin.sent_id)

    def raw(self, own: Labelled) -> dict[str, Any]:
        """A row as files have it, column → value, and as the pair reads it."""
        values = self.reader.raw(own.row)
        if self._ends_inclusive:
            for name in ("head", "tail"):
                start, stop = values[name]
                values[name] = [start, stop - 1]
        if own.doc_id is not None and "doc_id" in self._columns:
            values["doc_id"] = own.doc_id
            if own.sent_id is not None:
                values["sent_id"] = own.sent_id
        return {self._columns.get(name, name): value for name, value in values.items()}


def with_answer(row: Any, answers: Sequence[Answer]) -> Any:
    """A row with what was answered as its labels."""
    if hasattr(row, "choices"):
        (answer,) = answers
        assert isinstance(answer, Label)
        return replace(row, answer=row.choices.index(answer.name))
    if hasattr(row, "tags"):
        tags = ["O"] * len(row.words)
        for own in answers:
            assert isinstance(own, Entity)
            for word in range(own.first, own.stop):
                tags[word] = f"{'B' if word == own.first else 'I'}-{own.type}"
        return replace(row, tags=tags)
    (answer,) = answers
    if isinstance(answer, GeneratedText):
        return replace(row, target=answer.text)
    if isinstance(answer, Label | Relation):
        return replace(row, label=answer.name)
    if isinstance(answer, SpanAnswer):
        return replace(row, answers=(answer.text,), spans=((answer.start, answer.stop),))
    return replace(row, answers=(), spans=())
