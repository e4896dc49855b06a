"""Relation extraction: how two marked entities of a row are related."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tsarch.config import ColumnsConfig, DataConfig
from tsarch.data.rows import (
    Place,
    RowOrMistakes,
    check_text,
    check_words,
    found,
    from_json,
    make_row,
    no_column,
)
from tsarch.errors import Mistake
from tsarch.records import IntArray, TokenizedSplit
from tsarch.tasks.base import LabelTask, Metrics
from tsarch.tasks.votes import OneLabelRows, row_votes

NO_RELATION = ("NA", "no_relation", "Other", "O")
"""Labels that mean "none of the relations" in the usual data sets."""
HEAD_MARK, TAIL_MARK = "@", "#"
"""Put on both sides of an entity; tokens that every tokenizer has (Zhou & Chen 2022, "An Improved
Baseline for Sentence-level Relation Extraction", section 3.2)."""


class RelationRows(OneLabelRows):
    """`tokens` with the spans [start, end) of `head` and `tail`, and the `relation` of the two.

    The label stands before the first of both entities, so a window that can't hold the row begins
    there. Every row is a context of its own, whatever its `doc_id`: rows with other marks in the
    same sentence are too alike to be told apart in one.
    """

    def needed(self, columns: ColumnsConfig) -> tuple[str, ...]:
        """Words, both spans and the relation."""
        return columns.tokens, columns.head, columns.tail, columns.relation

    def word_lists(self, columns: ColumnsConfig) -> tuple[str, ...]:
        """The words."""
        return (columns.tokens,)

    def label_column(self, columns: ColumnsConfig) -> str:
        """The relation."""
        return columns.relation

    def read(self, place: Place, raw: dict[str, Any], data: DataConfig) -> RowOrMistakes:
        """Marks both entities, which may overlap; their spans must lie inside the words."""
        columns = data.columns
        mistakes = found(
            check_words(place, raw, columns.tokens), check_text(place, raw, columns.relation)
        )
        spans = []
        for name in (columns.head, columns.tail):
            span = _span(place, raw, name, mistakes)
            spans.append(span or (0, 0))
        if mistakes:
            return None, mistakes
        tokens = raw[columns.tokens]
        for name, (start, stop) in zip((columns.head, columns.tail), spans, strict=True):
            if not 0 <= start < stop <= len(tokens):
                what = f"`{name}` is [{start}, {stop}), outside the {len(tokens)} tokens or empty."
                mistakes.append(Mistake(str(place), what))
        if mistakes:
            return None, mistakes
        marked = _marked(tokens, spans)
        focus = min(start for start, _ in spans)
        row, mistakes = make_row(place, raw, columns, marked, [raw[columns.relation]], focus)
        return row and replace(row, doc_id=str(place)), mistakes


def _marked(tokens: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[str]:
    """Words with a mark before and after the head's span and the tail's."""
    marks = list(zip(spans, (HEAD_MARK, TAIL_MARK), strict=True))
    marked: list[str] = []
    for place in range(len(tokens) + 1):
        marked += [mark for (_, stop), mark in marks if stop == place]
        marked += [mark for (start, _), mark in marks if start == place]
        marked += tokens[place : place + 1]
    return marked


def _span(
    place: Place, raw: dict[str, Any], name: str, mistakes: list[Mistake]
) -> tuple[int, int] | None:
    """Two whole numbers; in CSV a JSON list of them."""
    if name not in raw:
        mistakes.append(no_column(str(place), name, raw))
        return None
    value = from_json(raw[name])
    match value:
        case [int(start), int(stop)] if bool not in (type(start), type(stop)):
            return start, stop
    what = f"`{name}` is {reprlib.repr(value)}, not a span [start, end) of two whole numbers."
    mistakes.append(Mistake(str(place), what))
    return None


class RelationTask(LabelTask):
    """Relations of rows; rows without one count only where one was predicted."""

    main_metric = "f1_micro"
    table_metrics: tuple[str, ...] = ("precision", "recall", "f1_micro", "f1_macro")

    def metrics(self, split: TokenizedSplit, predicted: IntArray) -> Metrics:
        """Precision, recall, micro and macro F1 without the class of no relation.

        Micro F1 is that of TACRED (Zhang et al. 2017, section 5): sums over the relations. Macro
        F1 is the mean over the relations that the split has or that were predicted.
        """
        from sklearn.metrics import f1_score, precision_recall_fscore_support

        gold, guess = row_votes(split, split.labels), row_votes(split, predicted)
        relations = [label for label, name in enumerate(self.labels) if name not in NO_RELATION]
        seen = np.intersect1d(np.union1d(gold, guess), relations).tolist()
        if not seen:
            return dict.fromkeys(self.table_metrics, 0.0)
        precision, recall, micro, _ = precision_recall_fscore_support(
            gold, guess, labels=seen, average="micro", zero_division=0
        )
        macro = f1_score(gold, guess, labels=seen, average="macro", zero_division=0)
        return {
            "precision": float(precision),
            "recall": float(recall),
            "f1_micro": float(micro),
            "f1_macro": float(macro),
        }


ROWS, TASK = RelationRows, RelationTask
