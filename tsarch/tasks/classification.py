"""Classification: a label a text, or a label for every sentence of a document."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tsarch.config import DataConfig
from tsarch.data.formats.findings import Findings
from tsarch.data.formats.shapes import Shape
from tsarch.data.formats.span_shapes import CHOICE_SHAPES
from tsarch.data.layouts import LabelledTextLayout, Layout, PackingSpec
from tsarch.data.names import CLEANED, cleaned
from tsarch.data.rows import (
    DocumentColumns,
    Origin,
    Place,
    check_text,
    check_unicode,
    found,
    read_origin,
    shown,
    with_named_label,
)
from tsarch.data.words import num_words
from tsarch.errors import Mistake
from tsarch.records import FloatArray, IntArray, TokenizedSplit
from tsarch.tasks.answers import Label
from tsarch.tasks.base import LabelTask, Metrics
from tsarch.tasks.votes import likeliest, only_one, row_probabilities, row_votes

_MOST_NUMBERS = 20
"""Labels that may be numbers with fractions, such as marks in halves."""


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text, or a sentence of one, and its label."""

    origin: Origin = field(repr=False)
    text: str
    label: str | None
    """None: not known."""

    @property
    def num_words(self) -> int:
        """Of the text."""
        return num_words(self.text)

    @property
    def num_labels(self) -> int:
        """One."""
        return int(self.label is not None)


class ClassificationColumns(DocumentColumns):
    """Columns of `classification`."""

    text: str = "text"
    """Column with the text (a string)."""
    label: str = "label"
    """Column with the label (a string, or a class number that the set names)."""


class ClassificationReader:
    """One `text` a row with its `label`; rows of a `doc_id` are the sentences of a document."""

    shapes: tuple[Shape, ...] = CHOICE_SHAPES

    def __init__(self, data: DataConfig, labelled: bool = True) -> None:
        self.columns = ClassificationColumns(**data.columns)
        self._labelled = labelled

    @property
    def needed(self) -> tuple[str, ...]:
        """Text and label."""
        text, label = self.columns.text, self.columns.label
        return (text, label) if self._labelled else (text,)

    @property
    def optional(self) -> tuple[str, ...]:
        """Document and place in it."""
        return self.columns.doc_id, self.columns.sent_id

    @property
    def word_lists(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def label_column(self) -> str:
        """The label."""
        return self.columns.label

    def read(self, place: Place, raw: dict[str, Any]) -> tuple[LabelledText | None, list[Mistake]]:
        """Neither may be empty."""
        with_named_label(raw, self.columns.label)
        mistakes = found(*(check_text(place, raw, name) for name in self.needed))
        if mistakes:
            return None, mistakes
        origin = read_origin(place, raw, self.columns)
        text = raw[self.columns.text]
        label = raw[self.columns.label] if self._labelled else None
        if mistakes := found(check_unicode(place, origin.doc_id, text, label or "")):
            return None, mistakes
        return LabelledText(origin, text, label), []

    def complete(
        self, rows: list[LabelledText], source: str, findings: Findings
    ) -> list[LabelledText]:
        """Labels that look the same are the same; many numbers with fractions are no labels."""
        rows = [_with_clean_label(row, findings) for row in rows]
        names = {row.label for row in rows if row.label is not None}
        if len(names) > _MOST_NUMBERS and sum(map(_has_fraction, names)) > len(names) / 2:
            what = f"has {len(names):,} different numbers as labels, most of them with fractions."
            hint = "A label is a name of a class: make classes of them, such as low and high."
            findings.mistake(source, what, hint)
            return []
        return rows

    def raw(self, row: LabelledText) -> dict[str, Any]:
        """Text and label."""
        return {"text": row.text, "label": row.label}

    def label_names(self, row: LabelledText) -> Iterable[tuple[str, str]]:
        """The row's label."""
        if row.label is not None:
            yield row.label, str(row.origin.place)

    def labels(self, names: Iterable[str]) -> tuple[str, ...]:
        """The labels of the training split."""
        return tuple(names)

    def nothing_to_learn(self, names: Sequence[str]) -> str:
        """One label only."""
        return f"has one label only, `{shown(names[0])}`" if len(names) == 1 else ""

    def layout(self, spec: PackingSpec, labels: Sequence[str]) -> Layout[LabelledText]:
        """A label a row."""
        return LabelledTextLayout(spec, labels)


def _has_fraction(label: str) -> bool:
    return re.fullmatch(r"[-+]?\d*\.\d*[1-9]\d*", label) is not None


def _with_clean_label(row: LabelledText, findings: Findings) -> LabelledText:
    label = None if row.label is None else cleaned(row.label)
    if label == row.label:
        return row
    findings.count(CLEANED, row.origin.place)
    return replace(row, label=label)


class ClassificationTask(LabelTask):
    """Labels of rows, on which the words of their windows vote; scored by accuracy and by F1
    averaged over the labels."""

    main_metric = "f1_macro"
    full_marks: Mapping[str, float] = {"accuracy": 1.0, "f1_macro": 1.0}
    table_metrics: tuple[str, ...] = ("accuracy", "f1_macro")

    def metrics(self, split: TokenizedSplit, predicted: IntArray) -> Metrics:
        """Accuracy of the votes, and macro F1 over the labels that the split has or that won."""
        split.check_labels("measuring labels")
        from sklearn.metrics import accuracy_score, f1_score

        gold, guess = row_votes(split, split.labels), row_votes(split, predicted)
        return {
            "accuracy": float(accuracy_score(gold, guess)),
            "f1_macro": float(f1_score(gold, guess, average="macro", zero_division=0)),
        }

    def lacks(self, split: TokenizedSplit) -> str:
        """A second label."""
        return only_one(split, self.labels, "label")

    def answers(self, split: TokenizedSplit, scores: FloatArray) -> list[tuple[Label]]:
        """The label of every text."""
        votes = row_votes(split, likeliest(scores)).tolist()
        found = []
        for vote, own in zip(votes, row_probabilities(split, scores, self.labels), strict=True):
            name = self.labels[vote]
            found.append((Label(name, own[name], own),))
        return found


COLUMNS, READER, TASK = ClassificationColumns, ClassificationReader, ClassificationTask
