"""Classification: a label a text, or a label for every sentence of a document."""

from __future__ import annotations

from typing import Any

from tsarch.config import ColumnsConfig, DataConfig
from tsarch.data.rows import Place, RowOrMistakes, check_text, found, make_row
from tsarch.records import IntArray, TokenizedSplit
from tsarch.tasks.base import LabelTask, Metrics
from tsarch.tasks.votes import OneLabelRows, row_votes


class ClassificationRows(OneLabelRows):
    """One `text` a row with its `label`; rows of a `doc_id` are the sentences of a document."""

    def needed(self, columns: ColumnsConfig) -> tuple[str, ...]:
        """Text and label."""
        return columns.text, columns.label

    def word_lists(self, columns: ColumnsConfig) -> tuple[str, ...]:
        """None."""
        return ()

    def label_column(self, columns: ColumnsConfig) -> str:
        """The label."""
        return columns.label

    def read(self, place: Place, raw: dict[str, Any], data: DataConfig) -> RowOrMistakes:
        """Words are what stands between spaces."""
        columns = data.columns
        mistakes = found(*(check_text(place, raw, name) for name in self.needed(columns)))
        if mistakes:
            return None, mistakes
        return make_row(place, raw, columns, raw[columns.text].split(), [raw[columns.label]])


class ClassificationTask(LabelTask):
    """Labels of rows, on which the words of their windows vote; scored by accuracy and by F1
    averaged over the labels."""

    main_metric = "f1_macro"
    table_metrics: tuple[str, ...] = ("accuracy", "f1_macro")

    def metrics(self, split: TokenizedSplit, predicted: IntArray) -> Metrics:
        """Accuracy of the votes, and macro F1 over the labels that the split has or that won."""
        from sklearn.metrics import accuracy_score, f1_score

        gold, guess = row_votes(split, split.labels), row_votes(split, predicted)
        return {
            "accuracy": float(accuracy_score(gold, guess)),
            "f1_macro": float(f1_score(gold, guess, average="macro", zero_division=0)),
        }


ROWS, TASK = ClassificationRows, ClassificationTask
