"""Relation extraction: how two marked entities of a row are related."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tsarch.config import Columns, DataConfig, TaskConfig
from tsarch.data.asked_layouts import AskedWordsLayout
from tsarch.data.formats.findings import Findings
from tsarch.data.formats.relation_shapes import RELATION_SHAPES
from tsarch.data.formats.shapes import Shape
from tsarch.data.layouts import LabelledWordsLayout, Layout, PackingSpec
from tsarch.data.names import CLEANED, cleaned
from tsarch.data.rows import (
    Origin,
    Place,
    check_text,
    check_unicode,
    check_words,
    found,
    from_json,
    no_column,
    shown,
    with_named_label,
)
from tsarch.errors import Mistake
from tsarch.records import FloatArray, IntArray, TokenizedSplit
from tsarch.tasks.answers import Relation
from tsarch.tasks.base import LabelTask, Metrics
from tsarch.tasks.chinese import joined
from tsarch.tasks.no_relation import AUTO, no_relation
from tsarch.tasks.votes import likeliest, only_one, row_probabilities, row_votes

HEAD_MARK, TAIL_MARK = "@", "#"
"""Put on both sides of an entity; tokens that every tokenizer has (Zhou & Chen 2022, "An Improved
Baseline for Sentence-level Relation Extraction", section 3.2)."""


@dataclass(frozen=True, slots=True)
class MarkedEntities:
    """Two marked entities of a sentence, which may overlap, and how they are related."""

    origin: Origin = field(repr=False)
    tokens: list[str]
    head: tuple[int, int]
    """Words [start, end) of the first entity."""
    tail: tuple[int, int]
    """Of the second."""
    label: str | None
    """The relation; None: not known."""

    @property
    def num_words(self) -> int:
        """Of the sentence, without marks."""
        return len(self.tokens)

    @property
    def num_labels(self) -> int:
        """The relation."""
        return int(self.label is not None)

    @property
    def words(self) -> list[str]:
        """The sentence with marks around both entities."""
        return _marked(self.tokens, (self.head, self.tail))[0]

    @property
    def marked(self) -> tuple[tuple[int, int], ...]:
        """Both entities with their marks, in `words`."""
        return tuple(_marked(self.tokens, (self.head, self.tail))[1])

    @property
    def document(self) -> list[str]:
        """The sentence without marks."""
        return self.tokens

    @property
    def asked(self) -> tuple[tuple[int, int], ...]:
        """Both entities, without marks."""
        return self.head, self.tail

    @property
    def marks(self) -> frozenset[int]:
        """The first and last word of each of the `marked`."""
        return frozenset(place for start, stop in self.marked for place in (start, stop - 1))

    @property
    def focus(self) -> int:
        """The label stands before the first of both, so a window that can't hold the row begins
        there."""
        return min(self.head[0], self.tail[0])


class RelationColumns(Columns):
    """Columns of `relation`."""

    tokens: str = "tokens"
    """Column with the words of the sentence (a list of strings)."""
    head: str = "head"
    """Column with the words [start, end) of the first entity."""
    tail: str = "tail"
    """Column with the words [start, end) of the second entity."""
    relation: str = "relation"
    """Column with the relation's name, or that of no relation (`task.no_relation`)."""


class RelationReader:
    """`tokens` with the spans [start, end) of `head` and `tail`, and the `relation` of the two.

    Every row is a context of its own, whatever its `doc_id`: rows with other marks in the same
    sentence are too alike to be told apart in one. Where the student alone reads the marks, rows
    with the same words share one.
    """

    shapes: tuple[Shape, ...] = RELATION_SHAPES

    def __init__(self, data: DataConfig, labelled: bool = True) -> None:
        self.columns = RelationColumns(**data.columns)
        self._labelled = labelled
        self.span_ends = data.span_ends

    @property
    def needed(self) -> tuple[str, ...]:
        """Words, both spans and the relation."""
        columns = self.columns
        own = columns.tokens, columns.head, columns.tail
        return (*own, columns.relation) if self._labelled else own

    @property
    def optional(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def word_lists(self) -> tuple[str, ...]:
        """The words."""
        return (self.columns.tokens,)

    @property
    def label_column(self) -> str:
        """The relation."""
        return self.columns.relation

    def read(
        self, place: Place, raw: dict[str, Any]
    ) -> tuple[MarkedEntities | None, list[Mistake]]:
        """Both spans must lie inside the words."""
        columns = self.columns
        with_named_label(raw, columns.relation)
        mistakes = found(check_words(place, raw, columns.tokens))
        if self._labelled:
            mistakes += found(check_text(place, raw, columns.relation))
        head, tail = (_span(place, raw, name, mistakes) for name in (columns.head, columns.tail))
        if mistakes:
            return None, mistakes
        if self.span_ends == "inclusive":
            head, tail = (head[0], head[1] + 1), (tail[0], tail[1] + 1)
        tokens = raw[columns.tokens]
        relation = raw[columns.relation] if self._labelled else None
        for name, (start, stop) in ((columns.head, head), (columns.tail, tail)):
            if not 0 <= start < stop <= len(tokens):
                what = f"`{name}` is [{start}, {stop}), outside the {len(tokens)} tokens or empty."
                hint = "If ends are the last words, set data.span_ends: inclusive."
                mistakes.append(Mistake(str(place), what, hint if start == stop else ""))
        mistakes += found(check_unicode(place, *tokens, relation or ""))
        if mistakes:
            return None, mistakes
        return MarkedEntities(Origin(place, place.name), tokens, head, tail, relation), []

    def complete(
        self, rows: list[MarkedEntities], source: str, findings: Findings
    ) -> list[MarkedEntities]:
        """Labels that look the same are the same."""
        return [_with_clean_label(row, findings) for row in rows]

    def raw(self, row: MarkedEntities) -> dict[str, Any]:
        """Words, both spans and the relation."""
        own = {"tokens": row.tokens, "head": list(row.head), "tail": list(row.tail)}
        return {**own, "relation": row.label}

    def label_names(self, row: MarkedEntities) -> Iterable[tuple[str, str]]:
        """The relation."""
        if row.label is not None:
            yield row.label, str(row.origin.place)

    def labels(self, names: Iterable[str]) -> tuple[str, ...]:
        """The relations of the training split."""
        return tuple(names)

    def nothing_to_learn(self, names: Sequence[str]) -> str:
        """One relation only."""
        return f"has one relation only, `{shown(names[0])}`" if len(names) == 1 else ""

    def layout(self, spec: PackingSpec, labels: Sequence[str]) -> Layout[MarkedEntities]:
        """A label a row."""
        return (LabelledWordsLayout if spec.query == "both" else AskedWordsLayout)(spec, labels)


def _with_clean_label(row: MarkedEntities, findings: Findings) -> MarkedEntities:
    label = None if row.label is None else cleaned(row.label)
    if label == row.label:
        return row
    findings.count(CLEANED, row.origin.place)
    return replace(row, label=label)


def _marked(
    tokens: Sequence[str], spans: Sequence[tuple[int, int]]
) -> tuple[list[str], list[tuple[int, int]]]:
    """Words with a mark before and after the head's span and the tail's, and where these are then,
    [start, stop) with their marks."""
    marks = list(zip(spans, (HEAD_MARK, TAIL_MARK), strict=True))
    marked: list[str] = []
    starts, stops = {}, {}
    for place in range(len(tokens) + 1):
        for (_, stop), mark in marks:
            if stop == place:
                marked.append(mark)
                stops[mark] = len(marked)
        for (start, _), mark in marks:
            if start == place:
                starts[mark] = len(marked)
                marked.append(mark)
        marked += tokens[place : place + 1]
    return marked, [(starts[mark], stops[mark]) for _, mark in marks]


def _span(place: Place, raw: dict[str, Any], name: str, mistakes: list[Mistake]) -> tuple[int, int]:
    """Two whole numbers; in CSV a JSON list of them."""
    if name not in raw:
        mistakes.append(no_column(str(place), name, raw))
        return 0, 0
    value = from_json(raw[name])
    match value:
        case [int(start), int(stop)] if bool not in (type(start), type(stop)):
            return start, stop
    what = f"`{name}` is {reprlib.repr(value)}, not a span [start, end) of two whole numbers."
    mistakes.append(Mistake(str(place), what))
    return 0, 0


class RelationTask(LabelTask):
    """Relations of rows; rows without one count only where one was predicted."""

    main_metric = "f1_micro"
    full_marks: Mapping[str, float] = {"f1_micro": 1.0, "f1_macro": 1.0}
    table_metrics: tuple[str, ...] = ("precision", "recall", "f1_micro", "f1_macro")

    def __init__(self, labels: Sequence[str], config: TaskConfig | None = None) -> None:
        super().__init__(labels)
        self.query = "both" if config is None else config.query
        wanted = AUTO if config is None else config.no_relation
        self.no_relation = no_relation(labels, wanted)
        """None: every label is a relation."""
        self.choices = (_told(self.no_relation, wanted == AUTO),)

    def metrics(self, split: TokenizedSplit, predicted: IntArray) -> Metrics:
        """Precision, recall, micro and macro F1 without the class of no relation.

        Micro F1 is that of TACRED (Zhang et al. 2017, section 5): sums over the relations. Macro
        F1 is the mean over the relations that the split has or that were predicted.
        """
        split.check_labels("measuring relations")
        from sklearn.metrics import f1_score, precision_recall_fscore_support

        gold, guess = row_votes(split, split.labels), row_votes(split, predicted)
        relations = [label for label, name in enumerate(self.labels) if name != self.no_relation]
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

    def lacks(self, split: TokenizedSplit) -> str:
        """A second relation."""
        return only_one(split, self.labels, "relation")

    def answers(self, split: TokenizedSplit, scores: FloatArray) -> list[tuple[Relation]]:
        """How the entities of every row are related."""
        votes = row_votes(split, likeliest(scores)).tolist()
        own = zip(split.rows, votes, row_probabilities(split, scores, self.labels), strict=True)
        return [(self._answer(*each),) for each in own]

    def _answer(self, row: MarkedEntities, vote: int, scores: dict[str, float]) -> Relation:
        name = self.labels[vote]
        head, tail = (joined(row.tokens[start:stop]) for start, stop in (row.head, row.tail))
        return Relation(name, head, tail, scores[name], scores)


def _told(name: str | None, by_itself: bool) -> str:
    """What is counted as no relation, for the user."""
    if name is None:
        return "every label counts as a relation (task.no_relation names one that doesn't)"
    how = "by its name; " if by_itself else ""
    return f"label `{shown(name)}` counts as no relation ({how}task.no_relation)"


COLUMNS, READER, TASK = RelationColumns, RelationReader, RelationTask
