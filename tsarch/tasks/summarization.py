"""Summarization: a long document and its summary, scored by ROUGE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tsarch.config import DataConfig
from tsarch.data.source_target import SourceTarget
from tsarch.tasks.base import Metrics, References
from tsarch.tasks.generative import (
    OBEDIENCE,
    SourceTargetColumns,
    SourceTargetReader,
    TargetTask,
)
from tsarch.tasks.text_metrics import ROUGE_NAMES, rouge, rouge_signature


class SummarizationColumns(SourceTargetColumns):
    """Columns of `summarization`."""

    document: str = "document"
    """Column with the text to summarise."""
    summary: str = "summary"
    """Column with its summary."""


class SummarizationReader(SourceTargetReader):
    """`document` and `summary`."""

    columns: SummarizationColumns

    def __init__(self, data: DataConfig, labelled: bool = True) -> None:
        self.columns = SummarizationColumns(**data.columns)
        self._labelled = labelled

    @property
    def source_column(self) -> str:
        """The document."""
        return self.columns.document

    @property
    def label_column(self) -> str:
        """Its summary."""
        return self.columns.summary

    def raw_pair(self, row: SourceTarget) -> dict[str, Any]:
        """The same two."""
        return {"document": row.source, "summary": row.target}


class SummarizationTask(TargetTask):
    """Summaries of documents."""

    table_metrics: tuple[str, ...] = ("perplexity", "rouge1", "rouge2", "rougeL", OBEDIENCE)
    text_marks: Mapping[str, float] = dict.fromkeys(ROUGE_NAMES, 1.0)

    def text_metrics(self, hypotheses: Sequence[str], references: References) -> Metrics:
        """Mean F of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), 0 to 1, by rouge-score."""
        return rouge(hypotheses, references)

    def text_signatures(self, hypotheses: Sequence[str], references: References) -> dict[str, str]:
        """How the metrics are computed."""
        return {"rouge": rouge_signature(references)}


COLUMNS, READER, TASK = SummarizationColumns, SummarizationReader, SummarizationTask
