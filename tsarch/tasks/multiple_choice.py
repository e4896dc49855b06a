"""Multiple choice: which of some answers to a question is right.

A row has a `question`, `choices` (a list of strings) and `answer`, the number of the right one from
0. Both models read the question and all choices at once, and a choice is as likely as "right" is
at its first word: one reading a question, where a reading a choice is usual (Zellers et al. 2018,
"SWAG", section 4).
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tsarch.config import Columns, DataConfig
from tsarch.data.choice_layout import ChoiceLayout
from tsarch.data.formats.findings import Findings
from tsarch.data.formats.shapes import Shape
from tsarch.data.layouts import Layout, PackingSpec
from tsarch.data.rows import (
    Origin,
    Place,
    check_text,
    check_unicode,
    check_words,
    found,
    from_json,
    no_column,
)
from tsarch.errors import Mistake
from tsarch.records import Array, FloatArray, IntArray, TokenizedSplit
from tsarch.tasks.answers import Label
from tsarch.tasks.base import LabelTask, Metrics
from tsarch.tasks.collect import Collector, WordCollector, label_probabilities

MARK = "*"
"""Before each choice."""
LABELS = ("O", "right", "wrong")
"""Of a choice's first word, and of all others."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A question, what may be chosen, and which of it is right."""

    origin: Origin = field(repr=False)
    question: str
    choices: list[str]
    answer: int | None
    readings: tuple[int | None, int | None] = field(default=(None, None), repr=False, compare=False)
    """Of an answer that was given as a text: the number that it says, and that of the choice that
    it is; None: it is none."""

    @property
    def num_words(self) -> int:
        """Of the question and its choices."""
        return len(" ".join([self.question, *self.choices]).split())

    @property
    def num_labels(self) -> int:
        """The right choice."""
        return int(self.answer is not None)

    @property
    def words(self) -> list[str]:
        """The question, then each choice behind a mark."""
        return [word for word, _ in self._tagged()]

    @property
    def tags(self) -> list[str] | None:
        """The first word of a choice is labelled."""
        return None if self.answer is None else [tag for _, tag in self._tagged()]

    @property
    def question_words(self) -> int:
        """How many stand before the choices."""
        return len(self.question.split())

    @property
    def firsts(self) -> IntArray:
        """The first word of each choice, counted from the end of the row: −1 is the last word."""
        sizes = [len(own.split()) + 1 for own in self.choices]
        return 1 - np.cumsum(sizes[::-1])[::-1]

    def _tagged(self) -> Iterable[tuple[str, str]]:
        for word in self.question.split():
            yield word, "O"
        for number, choice in enumerate(self.choices):
            first, *others = choice.split()
            yield MARK, "O"
            yield first, "right" if number == self.answer else "wrong"
            for word in others:
                yield word, "O"


class ChoiceColumns(Columns):
    """Columns of `multiple_choice`."""

    question: str = "question"
    """Column with the question (a string)."""
    choices: str = "choices"
    """Column with what may be chosen (a list of strings)."""
    answer: str = "answer"
    """Column with the number of the right one, from 0, or with that choice itself."""


class ChoiceReader:
    """Every row is a document of its own."""

    optional: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = ()

    def __init__(self, data: DataConfig, labelled: bool = True) -> None:
        self.columns = ChoiceColumns(**data.columns)
        self._labelled = labelled
        self.needed: tuple[str, ...] = (self.columns.question, self.columns.choices)
        if labelled:
            self.needed += (self.columns.answer,)
        self.word_lists = (self.columns.choices,)
        self.label_column = self.columns.answer

    def read(self, place: Place, raw: dict[str, Any]) -> tuple[Choice | None, list[Mistake]]:
        """The answer must be one of the choices: its number, or itself."""
        names = self.columns
        mistakes = found(
            check_text(place, raw, names.question), check_words(place, raw, names.choices)
        )
        if self._labelled and names.answer not in raw:
            mistakes.append(no_column(str(place), names.answer, raw))
        if mistakes:
            return None, mistakes
        question, choices = raw[names.question], raw[names.choices]
        if what := _wrong_choices(choices):
            return None, [Mistake(str(place), f"`{names.choices}` {what}.")]
        readings = _readings(raw[names.answer], choices) if self._labelled else (None, None)
        number, choice = readings
        answer = number if choice is None else choice
        if self._labelled and answer is None:
            what = f"is {reprlib.repr(raw[names.answer])}, not one of the {len(choices)} choices"
            return None, [Mistake(str(place), f"`{names.answer}` {what} (from 0).")]
        if mistakes := found(check_unicode(place, question, *choices)):
            return None, mistakes
        given = readings if isinstance(raw.get(names.answer), str) else (None, None)
        return Choice(Origin(place, str(place)), question, choices, answer, given), []

    def complete(self, rows: list[Choice], source: str, findings: Findings) -> list[Choice]:
        """Texts that may be numbers and choices are what all of them can be."""
        given = [row for row in rows if row.readings != (None, None)]
        unclear = [row for row in given if None not in row.readings and len({*row.readings}) > 1]
        if not unclear:
            return rows
        can_be = [all(row.readings[way] is not None for row in given) for way in (0, 1)]
        if can_be[0] == can_be[1]:
            row, name = unclear[0], self.columns.answer
            number, choice = row.readings
            assert number is not None
            assert choice is not None
            what = (
                f"`{name}` is {row.choices[choice]!r}, a choice, and as a number the choice "
                f"{row.choices[number]!r}; other rows don't tell which is meant."
            )
            hint = "Give numbers as JSON numbers, or letters before choices that are numbers."
            findings.mistake(str(row.origin.place), what, hint)
            return []
        way = can_be.index(True)
        findings.note(f"answers are {('numbers of choices, from 0', 'choices')[way]}")
        return [
            row if row.readings == (None, None) else replace(row, answer=row.readings[way])
            for row in rows
        ]

    def raw(self, row: Choice) -> dict[str, Any]:
        """Question, choices and answer."""
        return {"question": row.question, "choices": row.choices, "answer": row.answer}

    def label_names(self, row: Choice) -> Iterable[tuple[str, str]]:
        """None: what a choice is called doesn't matter."""
        return ()

    def labels(self, names: Iterable[str]) -> tuple[str, ...]:
        """Always the same."""
        return LABELS

    def nothing_to_learn(self, names: Sequence[str]) -> str:
        """Every row has a choice that is right."""
        return ""

    def layout(self, spec: PackingSpec, labels: Sequence[str]) -> Layout[Choice]:
        """A label a word."""
        return ChoiceLayout(spec, labels)


def _wrong_choices(choices: Sequence[str]) -> str:
    """What is wrong with what may be chosen, in words; empty: nothing."""
    if not all(choice.split() for choice in choices):
        return "has an empty one"
    if len(choices) < 2:
        return f"has {len(choices)}: a choice is among two at least"
    return "has the same one twice" if len(set(choices)) < len(choices) else ""


def _readings(value: Any, choices: Sequence[str]) -> tuple[int | None, int | None]:
    """Which choice an answer is as a number, and which as that choice itself; None: it is none."""
    choice = choices.index(value) if isinstance(value, str) and value in choices else None
    own = from_json(value)
    is_number = isinstance(own, int) and not isinstance(own, bool)
    return own if is_number and 0 <= own < len(choices) else None, choice


class ChoiceTask(LabelTask):
    """The likeliest choice, scored by accuracy."""

    main_metric = "accuracy"
    full_marks: Mapping[str, float] = {"accuracy": 1.0}
    table_metrics: tuple[str, ...] = ("accuracy",)

    def collector(self, joint_weights: Sequence[float]) -> Collector:
        """Probability of "right"; `joint` is the mean of both models'."""
        right = LABELS.index("right")
        return WordCollector(joint_weights, label_probabilities, lambda scores: scores[..., right])

    def decided(self, scores: FloatArray) -> FloatArray:
        """The same, of all labels' probabilities."""
        return scores[..., LABELS.index("right")]

    def metrics(self, split: TokenizedSplit, predicted: Array) -> Metrics:
        """Share of the rows whose likeliest choice is the right one."""
        split.check_labels("measuring choices")
        chosen = [int(np.argmax(own)) for own in _of_choices(split, predicted)]
        return {"accuracy": float(np.mean([c == r.answer for c, r in zip(chosen, split.rows)]))}

    def perfect(self, split: TokenizedSplit) -> Array:
        """Certain of the right ones."""
        own: FloatArray = (split.labels == LABELS.index("right")).astype(np.float32)
        return own

    def lacks(self, split: TokenizedSplit) -> str:
        """Nothing: every row has a choice that is right."""
        return ""

    def answers(self, split: TokenizedSplit, scores: FloatArray) -> list[tuple[Label]]:
        """The likeliest choice of every row."""
        found = []
        for row, own in zip(split.rows, _of_choices(split, scores[:, LABELS.index("right")])):
            best = int(np.argmax(own))
            every = dict(zip(row.choices, (own / own.sum()).tolist()))
            found.append((Label(row.choices[best], every[row.choices[best]], every),))
        return found


def _of_choices(split: TokenizedSplit, scores: Array) -> list[Array]:
    """The scores of each row's choices, from (num_words,) scores. Of long questions the start is
    left out."""
    stops = split.sentence_offsets[1:].tolist()
    return [scores[stop + row.firsts] for stop, row in zip(stops, split.rows, strict=True)]


COLUMNS, READER, TASK = ChoiceColumns, ChoiceReader, ChoiceTask
