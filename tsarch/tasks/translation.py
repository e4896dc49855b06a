"""Translation: a source text and its translation, scored by BLEU and chrF."""

from __future__ import annotations

from collections.abc import Sequence

from tsarch.tasks.base import Metrics, References
from tsarch.tasks.generative import SourceTargetReader, TargetTask
from tsarch.tasks.text_metrics import bleu, chrf


class TranslationReader(SourceTargetReader):
    """`source` and `target`."""

    @property
    def source_column(self) -> str:
        """The text to translate."""
        return self.columns.source

    @property
    def label_column(self) -> str:
        """Its translation."""
        return self.columns.target


class TranslationTask(TargetTask):
    """Translations of texts."""

    table_metrics: tuple[str, ...] = ("perplexity", "bleu", "chrf")

    def text_metrics(self, hypotheses: Sequence[str], references: References) -> Metrics:
        """BLEU (Papineni et al. 2002) and chrF (Popović 2015), 0 to 100, by sacrebleu."""
        return {"bleu": bleu(hypotheses, references), "chrf": chrf(hypotheses, references)}


READER, TASK = TranslationReader, TranslationTask
