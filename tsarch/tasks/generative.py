"""Tasks that generate a target from a source: what they share in reading, and perplexity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tsarch.config import ColumnsConfig, DataConfig
from tsarch.data.rows import (
    Layout,
    Place,
    Row,
    RowOrMistakes,
    check_text,
    check_words,
    found,
    make_row,
)
from tsarch.losses.objective import Objective, VocabularyObjective
from tsarch.records import Array, TokenizedSplit
from tsarch.tasks.base import Metrics, WindowChoice
from tsarch.tasks.collect import Collector, token_collector


class PairRows(ABC):
    """One source and one target a row: the part of a `RowSchema` that is the same for all."""

    layout: Layout = "pairs"
    keep_last = False
    """Of a source that is too long the end is kept, not the start."""

    @abstractmethod
    def source_column(self, columns: ColumnsConfig) -> str:
        """Column of the source."""

    @abstractmethod
    def label_column(self, columns: ColumnsConfig) -> str:
        """Column of the target."""

    def needed(self, columns: ColumnsConfig) -> tuple[str, ...]:
        """Source and target."""
        return self.source_column(columns), self.label_column(columns)

    def word_lists(self, columns: ColumnsConfig) -> tuple[str, ...]:
        """None."""
        return ()

    def read(self, place: Place, raw: dict[str, Any], data: DataConfig) -> RowOrMistakes:
        """Two texts that aren't empty; every row is a context of its own."""
        columns = data.columns
        mistakes = found(*(check_text(place, raw, name) for name in self.needed(columns)))
        if mistakes:
            return None, mistakes
        return self.row(place, raw, columns, [raw[self.source_column(columns)]])

    def row(
        self, place: Place, raw: dict[str, Any], columns: ColumnsConfig, parts: list[str]
    ) -> RowOrMistakes:
        """The row of a checked source, with its target and further references; it is a document of
        its own."""
        target = raw[self.label_column(columns)]
        others: list[str] = []
        if columns.references in raw:
            mistake = check_words(place, raw, columns.references)
            if mistake is not None:
                return None, [mistake]
            others = [text for text in raw[columns.references] if text not in (target, "")]
        row, mistakes = make_row(place, raw, columns, parts, [target, *others])
        return row and replace(row, doc_id=str(row.place), sent_id=None), mistakes

    def label_names(self, row: Row) -> Iterable[tuple[str, str]]:
        """None: whatever the vocabulary spells can be learned."""
        return ()

    def labels(self, names: Iterable[str]) -> tuple[str, ...]:
        """None."""
        return ()


class PairTask:
    """The part of a `GenerativeTask` that is the same for all."""

    objective: Objective = VocabularyObjective()
    main_metric = "perplexity"
    lower_is_better = True
    window_choice: WindowChoice | None = None

    def __init__(self, labels: Sequence[str]) -> None:
        assert not labels

    def collector(self, joint_weights: Sequence[float]) -> Collector:
        """Log-probabilities of the true next tokens."""
        return token_collector(joint_weights)

    def metrics(self, split: TokenizedSplit, predicted: Array) -> Metrics:
        """Perplexity: exp of the mean negative log-likelihood of the targets' tokens, their ends
        included, each given the source and the true tokens before it."""
        return {"perplexity": float(np.exp(-predicted.astype(np.float64).mean()))}
