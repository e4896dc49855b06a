"""Translation: a source text and its translation, scored by BLEU and chrF."""

from __future__ import annotations

from collections.abc import Sequence

from tsarch.config import ColumnsConfig
from tsarch.tasks.base import Metrics, References
from tsarch.tasks.generative import PairRows, PairTask
from tsarch.tasks.text_metrics import bleu, chrf


class TranslationRows(PairRows):
    """`source` and `target`."""

    def source_column(self, columns: ColumnsConfig) -> str:
        """The text to translate."""
        return columns.source

    def label_column(self, columns: ColumnsConfig) -> str:
        """Its translation."""
        return columns.target


class TranslationTask(PairTask):
    """Translations of texts."""

    table_metrics: tuple[str, ...] = ("perplexity", "bleu", "chrf")

    def text_metrics(self, hypotheses: Sequence[str], references: References) -> Metrics:
        """BLEU (Papineni et al. 2002) and chrF (Popović 2015), 0 to 100, by sacrebleu."""
        return {"bleu": bleu(hypotheses, references), "chrf": chrf(hypotheses, references)}


ROWS, TASK = TranslationRows, TranslationTask
