"""Named entities: word-level IOB2 tags, scored by entity with seqeval in strict mode."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tsarch.records import IntArray, TokenizedSplit
from tsarch.tasks.base import Metrics


class NerTask:
    """Entities as tags of words; an entity counts if its type and both its ends are right."""

    main_metric = "f1"
    table_metrics: tuple[str, ...] = ("precision", "recall", "f1")

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)

    def metrics(self, split: TokenizedSplit, predicted: IntArray) -> Metrics:
        """Strict entity precision, recall and F1 (micro), and accuracy over words."""
        from seqeval.metrics import accuracy_score
        from seqeval.metrics.v1 import precision_recall_fscore_support  # seqeval's strict mode
        from seqeval.scheme import IOB2

        gold, guess = self._sentences(split, split.labels), self._sentences(split, predicted)
        precision, recall, f1, _ = precision_recall_fscore_support(
            gold, guess, average="micro", scheme=IOB2, zero_division=0
        )
        return {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "accuracy": float(accuracy_score(gold, guess)),
        }

    def _sentences(self, split: TokenizedSplit, label_ids: IntArray) -> list[list[str]]:
        tags = [self.labels[i] for i in label_ids.tolist()]
        bounds = split.sentence_offsets.tolist()
        return [tags[start:stop] for start, stop in itertools.pairwise(bounds)]
