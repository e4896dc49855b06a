"""Predictions as they stand between a model and its losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Logits:
    """Logits of the whole vocabulary, of some positions alone: of all they would fill the memory.

    They come from models whose output is more than a product with the tied table.
    """

    values: Tensor
    """(n, vocabulary)."""
    chosen: Tensor
    """(batch, tokens) or (positions,) bool: the n positions, in their order."""

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.values.device

    def at(self, places: Tensor) -> Logits:
        """Of fewer positions: `places` is shaped as `chosen` and true nowhere else."""
        values = self.values[places[self.chosen]]
        return Logits(values, torch.ones(len(values), dtype=torch.bool, device=values.device))

    def rows(self, positions: Tensor) -> Tensor:
        """(m, vocabulary) of flat `positions` (m,), zeros where there are no logits."""
        flat = self.chosen.flatten()
        place = torch.where(flat, flat.cumsum(0) - 1, -1)[positions]
        found = self.values.new_zeros(len(positions), self.values.shape[1])
        found[place >= 0] = self.values[place[place >= 0]]
        return found

    def detach(self) -> Logits:
        """Without their graph."""
        return Logits(self.values.detach(), self.chosen)


Predicted = Tensor | Logits
"""(batch, tokens, outputs) of every position, or logits of some."""


def at(predicted: Predicted, places: Tensor) -> Predicted:
    """Predictions at `places` (batch, tokens) bool: (n, outputs), or logits of these n."""
    return predicted.at(places) if isinstance(predicted, Logits) else predicted[places]


def dense(predicted: Predicted) -> Tensor:
    """Predictions that are there for every position."""
    assert isinstance(predicted, Tensor), "these are logits of some positions"
    return predicted
