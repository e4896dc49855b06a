"""Summarization: a long document and its summary, scored by ROUGE."""

from __future__ import annotations

from collections.abc import Sequence

from tsarch.config import ColumnsConfig
from tsarch.tasks.base import Metrics, References
from tsarch.tasks.generative import PairRows, PairTask
from tsarch.tasks.text_metrics import rouge


class SummarizationRows(PairRows):
    """`document` and `summary`."""

    def source_column(self, columns: ColumnsConfig) -> str:
        """The document."""
        return columns.document

    def label_column(self, columns: ColumnsConfig) -> str:
        """Its summary."""
        return columns.summary


class SummarizationTask(PairTask):
    """Summaries of documents."""

    table_metrics: tuple[str, ...] = ("perplexity", "rouge1", "rouge2", "rougeL")

    def text_metrics(self, hypotheses: Sequence[str], references: References) -> Metrics:
        """Mean F of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), 0 to 1, by rouge-score."""
        return rouge(hypotheses, references)


ROWS, TASK = SummarizationRows, SummarizationTask
