"""Translation: a source text and its translation, scored by BLEU and chrF."""

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
from tsarch.tasks.text_metrics import bleu, bleu_signature, chrf, chrf_signature


class TranslationColumns(SourceTargetColumns):
    """Columns of `translation`."""

    source: str = "source"
    """Column with the text to translate."""
    target: str = "target"
    """Column with its translation."""


class TranslationReader(SourceTargetReader):
    """`source` and `target`."""

    columns: TranslationColumns

    def __init__(self, data: DataConfig, labelled: bool = True) -> None:
        self.columns = TranslationColumns(**data.columns)
        self._labelled = labelled

    @property
    def source_column(self) -> str:
        """The text to translate."""
        return self.columns.source

    @property
    def label_column(self) -> str:
        """Its translation."""
        return self.columns.target

    def raw_pair(self, row: SourceTarget) -> dict[str, Any]:
        """The same two."""
        return {"source": row.source, "target": row.target}


class TranslationTask(TargetTask):
    """Translations of texts."""

    table_metrics: tuple[str, ...] = ("perplexity", "bleu", "chrf", OBEDIENCE)
    text_marks: Mapping[str, float] = {"bleu": 100.0, "chrf": 100.0}

    def text_metrics(self, hypotheses: Sequence[str], references: References) -> Metrics:
        """BLEU (Papineni et al. 2002) and chrF (Popović 2015), 0 to 100, by sacrebleu."""
        return {"bleu": bleu(hypotheses, references), "chrf": chrf(hypotheses, references)}

    def text_signatures(self, hypotheses: Sequence[str], references: References) -> dict[str, str]:
        """How the metrics are computed."""
        return {
            "bleu": bleu_signature(hypotheses, references),
            "chrf": chrf_signature(hypotheses, references),
        }


COLUMNS, READER, TASK = TranslationColumns, TranslationReader, TranslationTask
