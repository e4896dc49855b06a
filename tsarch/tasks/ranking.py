"""Ranking: how relevant passages are to queries, measured by the order of a query's candidates."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsarch.config import Columns, DataConfig, TaskConfig
from tsarch.data.asked_layouts import AskedPassageLayout
from tsarch.data.formats.ranking_shapes import RANKING_SHAPES
from tsarch.data.formats.shapes import Shape
from tsarch.data.layouts import Layout, PackingSpec
from tsarch.data.query_passages import QueryPassageLayout
from tsarch.data.row_reader import PlainSplits
from tsarch.data.rows import (
    Origin,
    Place,
    check_text,
    check_unicode,
    found,
    from_json,
    is_absent,
    no_column,
)
from tsarch.data.words import num_words
from tsarch.errors import Mistake
from tsarch.records import Array, FloatArray, TokenizedSplit
from tsarch.tasks.answers import Relevance
from tsarch.tasks.base import LabelTask, Metrics
from tsarch.tasks.collect import Collector, WordCollector, label_probabilities
from tsarch.tasks.votes import likeliest, row_means, row_probabilities

_MOST = 100
"""Of relevance: what is larger is a measurement, not a grade."""
_TOP = 10
"""Places that nDCG looks at."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage, and how relevant it is to a query."""

    origin: Origin = field(repr=False)
    query: str
    passage: str
    query_id: str
    """What the candidates of a query have in common."""
    label: str | None
    """The grade, a whole number from 0, not relevant; None: not known."""

    @property
    def question(self) -> str:
        """The query, as what was asked of the passage."""
        return self.query

    @property
    def text(self) -> str:
        """The passage, as what is shown of the row."""
        return self.passage

    @property
    def num_words(self) -> int:
        """Of both texts."""
        return num_words(self.query) + num_words(self.passage)

    @property
    def num_labels(self) -> int:
        """The grade."""
        return int(self.label is not None)


class RankingColumns(Columns):
    """Columns of `ranking`."""

    query: str = "query"
    """Column with the query (a string)."""
    passage: str = "passage"
    """Column with a passage (a string)."""
    relevance: str = "relevance"
    """Column with the passage's relevance: a whole number from 0, not relevant, to 100."""
    query_id: str = "query_id"
    """Column that names the query. Absent: rows with the same query are its candidates."""


class RankingReader(PlainSplits):
    """A `query`, a `passage` and its `relevance` a row; a query's rows are its candidates."""

    shapes: tuple[Shape, ...] = RANKING_SHAPES

    def __init__(self, data: DataConfig, labelled: bool = True) -> None:
        self.columns = RankingColumns(**data.columns)
        self._labelled = labelled

    @property
    def needed(self) -> tuple[str, ...]:
        """Query, passage and relevance."""
        columns = self.columns
        own = columns.query, columns.passage
        return (*own, columns.relevance) if self._labelled else own

    @property
    def optional(self) -> tuple[str, ...]:
        """The query's name."""
        return (self.columns.query_id,)

    @property
    def word_lists(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def label_column(self) -> str:
        """The relevance."""
        return self.columns.relevance

    def read(self, place: Place, raw: dict[str, Any]) -> tuple[Candidate | None, list[Mistake]]:
        """Neither text may be empty."""
        names = self.columns
        mistakes = found(*(check_text(place, raw, own) for own in (names.query, names.passage)))
        label = None
        if self._labelled:
            label = _grade(place, raw, names.relevance, mistakes)
        if mistakes:
            return None, mistakes
        query, passage, own = raw[names.query], raw[names.passage], raw.get(names.query_id)
        query_id = query if is_absent(own) else str(own)
        if mistakes := found(check_unicode(place, query, passage, query_id)):
            return None, mistakes
        return Candidate(Origin(place, place.name), query, passage, query_id, label), []

    def raw(self, row: Candidate) -> dict[str, Any]:
        """Both texts, the query's name and the relevance."""
        own = {"query": row.query, "passage": row.passage, "query_id": row.query_id}
        return {**own, "relevance": None if row.label is None else int(row.label)}

    def label_names(self, row: Candidate) -> Iterable[tuple[str, str]]:
        """The grade."""
        if row.label is not None:
            yield row.label, str(row.origin.place)

    def labels(self, names: Iterable[str]) -> tuple[str, ...]:
        """The grades of the training split, the lowest first."""
        return tuple(sorted(names, key=int))

    def nothing_to_learn(self, names: Sequence[str]) -> str:
        """One grade only."""
        return f"has one relevance only, {names[0]}" if len(names) == 1 else ""

    def layout(self, spec: PackingSpec, labels: Sequence[str]) -> Layout[Candidate]:
        """A label a row."""
        return (QueryPassageLayout if spec.query == "both" else AskedPassageLayout)(spec, labels)


def _grade(place: Place, raw: dict[str, Any], name: str, mistakes: list[Mistake]) -> str | None:
    """The name of a grade; true and false are 1 and 0, and in CSV numbers are texts."""
    if name not in raw:
        mistakes.append(no_column(str(place), name, raw))
        return None
    value = from_json(raw[name])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and 0 <= value <= _MOST:
        return str(int(value))
    what = f"`{name}` is {reprlib.repr(raw[name])}, not a whole number from 0 to {_MOST}."
    mistakes.append(Mistake(str(place), what))
    return None


class RankingTask(LabelTask):
    """Expected grades of passages (McRank: Li, Burges and Wu 2007, section 3.2), by which a query's
    candidates are ordered."""

    main_metric = "ndcg_10"
    full_marks: Mapping[str, float] = {"mrr": 1.0, "ndcg_10": 1.0}
    table_metrics: tuple[str, ...] = ("mrr", "ndcg_10")

    def __init__(self, labels: Sequence[str], config: TaskConfig | None = None) -> None:
        super().__init__(labels)
        self.query = "both" if config is None else config.query

    def collector(self, joint_weights: Sequence[float]) -> Collector:
        """Expected grades; `joint` is the weighted mean of both."""
        return WordCollector(joint_weights, label_probabilities, self.decided)

    def decided(self, scores: FloatArray) -> FloatArray:
        """(…, labels) probabilities → (…) expected grades."""
        expected: FloatArray = scores @ self._grades
        return expected

    def perfect(self, split: TokenizedSplit) -> Array:
        """The grades."""
        return self._grades[split.labels]

    def metrics(self, split: TokenizedSplit, predicted: Array) -> Metrics:
        """Means over the queries that have a relevant candidate and one that is less relevant.

        The reciprocal rank (Voorhees 1999, "The TREC-8 Question Answering Track Report") is that of
        the first candidate with a relevance above 0; of equal scores those that aren't relevant
        come first. nDCG@10 (Järvelin and Kekäläinen 2002) is scikit-learn's: gains are the grades,
        equal scores are averaged.
        """
        split.check_labels("measuring rankings")
        from sklearn.metrics import ndcg_score

        ranks, gains = [], []
        for grades, scores in self._rankings(split, predicted):
            best = scores[grades > 0].max()
            ranks.append(1 / (1 + (scores[grades == 0] >= best).sum()))
            gains.append(ndcg_score([grades], [scores], k=_TOP))
        if not ranks:
            return dict.fromkeys(self.table_metrics, 0.0)
        return {"mrr": float(np.mean(ranks)), "ndcg_10": float(np.mean(gains))}

    def lacks(self, split: TokenizedSplit) -> str:
        """A query with candidates to be told apart."""
        if any(True for _ in self._rankings(split, self.perfect(split))):
            return ""
        return "has no query with a relevant passage and one that is less relevant"

    def answers(self, split: TokenizedSplit, scores: FloatArray) -> list[tuple[Relevance]]:
        """How relevant every passage is."""
        found = []
        for own in row_probabilities(split, scores, self.labels):
            expected = float(np.array(list(own.values())) @ self._grades)
            name = self.labels[int(likeliest(np.array(list(own.values()))))]
            found.append((Relevance(name, own[name], own, expected),))
        return found

    @property
    def _grades(self) -> FloatArray:
        return np.array([int(label) for label in self.labels], dtype=np.float32)

    def _rankings(
        self, split: TokenizedSplit, predicted: Array
    ) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Grades and scores of each query's candidates, where they can be told apart."""
        scores, grades = row_means(split, predicted), row_means(split, self.perfect(split))
        places: dict[str, list[int]] = {}
        for place, row in enumerate(split.rows):
            places.setdefault(row.query_id, []).append(place)
        for own in places.values():
            if grades[own].max() > grades[own].min():
                yield grades[own], scores[own]


COLUMNS, READER, TASK = RankingColumns, RankingReader, RankingTask
