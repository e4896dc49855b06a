"""What a stage's predictions mean: from the numbers that heads put out to losses per position.

A head puts out `width` numbers a position. They travel over the link in place of logits, which for
a vocabulary would be a hundred times as many, and losses are computed outside the engines, where
the tied table is. A model whose output is more than a product with the table gives logits itself,
of the labelled positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tsarch.config.base import Divergence
from tsarch.losses.predictions import Logits, Predicted, at, dense
from tsarch.losses.token import cross_entropy, distillation, weighted_cross_entropy
from tsarch.models.heads import token_logits
from tsarch.records import IGNORED

_CHUNK_ELEMENTS = 1 << 25
"""Logits that are held at one time: 0.13 GB in fp32."""


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
        chosen = labels != IGNORED
        own, logits = _opened(predictions, chosen, table)

        def chunk(values: Tensor, tokens: Tensor) -> Tensor:
            return cross_entropy(logits(values), tokens)

        return _scattered(chosen, [own, labels[chosen]], chunk, table)

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
        chosen = labels != IGNORED
        own, logits = _opened(student, chosen, table)
        other, others_logits = _opened(teacher, chosen, table)

        def chunk(own: Tensor, other: Tensor, tokens: Tensor) -> Tensor:
            with torch.no_grad():
                teacher_logits = others_logits(other)
            return distillation(logits(own), teacher_logits, tokens, temperature, kind)

        return _scattered(chosen, [own, other, labels[chosen]], chunk, table)

    def sent(self, predictions: Predicted, labels: Tensor) -> Predicted:
        """As they are."""
        return predictions


def _opened(
    predicted: Predicted, chosen: Tensor, table: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Predictions (n, …) of the chosen positions, and what makes fp32 logits of them."""
    own = at(predicted, chosen)
    if isinstance(own, Logits):
        return own.values, Tensor.float
    return own, partial(token_logits, table=table)


def _scattered(chosen: Tensor, inputs: list[Tensor], chunk: object, table: Tensor) -> Tensor:
    """`chunk` of the chosen positions, in their places; zeros elsewhere.

    Where the logits of all are too many to hold, they are computed in several chunks, and again in
    the backward pass.
    """
    assert callable(chunk)
    size = max(_CHUNK_ELEMENTS // len(table), 1)
    parts = zip(*(torch.split(tensor, size) for tensor in inputs), strict=True)
    if len(inputs[0]) <= size:
        values = chunk(*inputs)
    else:
        values = torch.cat([checkpoint(chunk, *part, use_reentrant=False) for part in parts])
    scattered: Tensor = values.new_zeros(chosen.shape).masked_scatter(chosen, values)
    return scattered
