"""What a task is to the rest: labels in, metrics out."""

from __future__ import annotations

from typing import Protocol

from tsarch.records import IntArray, TokenizedSplit

Metrics = dict[str, float]


class Task(Protocol):
    """A task over labelled words."""

    main_metric: str
    """Metric that decides which weights are best (higher is better)."""
    table_metrics: tuple[str, ...]
    """Metrics that the final table shows."""

    def metrics(self, split: TokenizedSplit, predicted: IntArray) -> Metrics:
        """Metrics of (num_words,) predicted label ids against the split's labels."""
