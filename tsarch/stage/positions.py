"""How many positions a stage's model computed, and how many of them were real tokens."""

from __future__ import annotations

from collections.abc import Iterable

from tsarch.records import IntArray


class PositionCount:
    """Counts what a stage's forward passes read.

    Args:
        unpadded: whether the model leaves padding out (`data.unpadded`).
    """

    def __init__(self, unpadded: bool) -> None:
        self._unpadded = unpadded
        self._real = self._computed = 0

    def add(self, masks: Iterable[IntArray]) -> None:
        """Count batches of (sequences, tokens) masks, 0 at padding."""
        for mask in masks:
            real = int(mask.sum())
            self._real += real
            self._computed += real if self._unpadded else mask.size

    def take(self) -> tuple[int, int]:
        """Real tokens and computed positions since the last call."""
        taken = self._real, self._computed
        self._real = self._computed = 0
        return taken
