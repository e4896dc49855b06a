"""Summarization: a long document and its summary, scored by ROUGE."""

from __future__ import annotations

from collections.abc import Sequence

from tsarch.tasks.base import Metrics, References
from tsarch.tasks.generative import SourceTargetReader, TargetTask
from tsarch.tasks.text_metrics import rouge


class SummarizationReader(SourceTargetReader):
    """`document` and `summary`."""

    @property
    def source_column(self) -> str:
        """The document."""
        return self.columns.document

    @property
    def label_column(self) -> str:
        """Its summary."""
        return self.columns.summary


class SummarizationTask(TargetTask):
    """Summaries of documents."""

    table_metrics: tuple[str, ...] = ("perplexity", "rouge1", "rouge2", "rougeL")

    def text_metrics(self, hypotheses: Sequence[str], references: References) -> Metrics:
        """Mean F of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), 0 to 1, by rouge-score."""
        return rouge(hypotheses, references)


READER, TASK = SummarizationReader, SummarizationTask
