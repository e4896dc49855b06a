"""What a stage's predictions mean: from the numbers that heads put out to losses per position.

A head puts out `width` numbers a position. They travel over the link in place of logits, which for
a vocabulary would be a hundred times as many, and losses are computed outside the engines, where
the tied table is. A model whose output is more than a product with the table gives logits itself,
of the labelled positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from tsarch.config.base import Divergence
from tsarch.losses.blocks import Losses, losses_by_blocks
from tsarch.losses.predictions import Predicted, at, dense
from tsarch.losses.token import cross_entropy, distillation, weighted_cross_entropy
from tsarch.records import IGNORED


class Objective(Protocol):
    """Losses of predictions at labelled positions."""

    uses_table: bool
    """Predictions are compared with every row of the table, so that every step touches all."""
    per_sequence: bool
    """A loss a context or window, at its first position; otherwise one a labelled word."""

    def num_outputs(self, num_labels: int) -> int | None:
        """Numbers that a head puts out a position; None: as many as the table is wide."""

    def losses(self, predictions: Predicted, labels: Tensor, table: Tensor) -> Tensor:
        """(batch, tokens, outputs), (batch, tokens), (rows, table_width) → (batch, tokens) fp32,
        0 where `labels` is `IGNORED`."""

    def divergences(
        self,
        student: Predicted,
        teacher: Predicted,
        labels: Tensor,
        temperature: float,
        table: Tensor,
        kind: Divergence = "kl",
    ) -> Tensor:
        """Distillation (`losses.token.distillation`) from the teacher's to the student's
        predictions, of shapes as in `losses` → (batch, tokens) fp64."""

    def sent(self, predictions: Predicted, labels: Tensor) -> Predicted:
        """The teacher's predictions as they travel to the student, of the same shape."""


class LabelObjective:
    """A label for every labelled position: predictions are logits of the labels.

    Args:
        weights: of the labels in the loss; None: all count the same.
        focal_gamma: how much less a position counts whose label is likely already; 0: not at all.
    """

    uses_table = False
    per_sequence = False

    def __init__(self, weights: Sequence[float] | None = None, focal_gamma: float = 0.0) -> None:
        self._weights = None if weights is None else torch.tensor(weights)
        self._focal_gamma = focal_gamma

    def num_outputs(self, num_labels: int) -> int | None:
        """One a label."""
        return num_labels

    def losses(self, predictions: Predicted, labels: Tensor, table: Tensor) -> Tensor:
        """Cross-entropy, weighted."""
        return weighted_cross_entropy(dense(predictions), labels, self._weights, self._focal_gamma)

    def divergences(
        self,
        student: Predicted,
        teacher: Predicted,
        labels: Tensor,
        temperature: float,
        table: Tensor,
        kind: Divergence = "kl",
    ) -> Tensor:
        """Between the labels' distributions."""
        return distillation(dense(student), dense(teacher), labels, temperature, kind)

    def sent(self, predictions: Predicted, labels: Tensor) -> Predicted:
        """As they are."""
        return predictions


class VocabularyObjective:
    """A next token for every labelled position: the tied table is the output projection.

    Predictions are vectors as wide as the table; a token's logit is its row's product with them
    (Press & Wolf 2017, "Using the Output Embedding to Improve Language Models"). Or they are
    logits, of the labelled positions at least. Labels are tokens.
    """

    uses_table = True
    per_sequence = False

    def num_outputs(self, num_labels: int) -> int | None:
        """As many as the table is wide."""
        return None

    def losses(self, predictions: Predicted, labels: Tensor, table: Tensor) -> Tensor:
        """Negative log-likelihood of the next token."""
        return _scattered(cross_entropy, [predictions], labels, table)

    def divergences(
        self,
        student: Predicted,
        teacher: Predicted,
        labels: Tensor,
        temperature: float,
        table: Tensor,
        kind: Divergence = "kl",
    ) -> Tensor:
        """Between the vocabulary's distributions; the teacher's is seen through the table as it
        is here and now."""
        losses = partial(distillation, temperature=temperature, kind=kind)
        return _scattered(losses, [student, teacher], labels, table)

    def sent(self, predictions: Predicted, labels: Tensor) -> Predicted:
        """As they are."""
        return predictions


def _scattered(
    losses: Losses, predicted: Sequence[Predicted], labels: Tensor, table: Tensor
) -> Tensor:
    """`losses` of the labelled positions, in their places; zeros elsewhere."""
    chosen = labels != IGNORED
    values = losses_by_blocks(losses, [at(own, chosen) for own in predicted], labels[chosen], table)
    scattered: Tensor = values.new_zeros(chosen.shape).masked_scatter(chosen, values)
    return scattered
