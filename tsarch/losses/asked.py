"""What a teacher learns that doesn't read what is asked: which spans of its text are asked for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tsarch.config.base import Divergence
from tsarch.losses.predictions import Predicted, dense
from tsarch.records import IGNORED, SPAN_END, SPAN_START


class AskedSpanObjective:
    """Two yes-or-no logits a word: whether an answer to some question starts there, and whether one
    ends there. The spans of many questions may overlap, so no word keeps another from being one.
    """

    uses_table = False
    per_sequence = False

    def num_outputs(self, num_labels: int) -> int | None:
        """Start and end."""
        return 2

    def losses(self, predictions: Predicted, labels: Tensor, table: Tensor) -> Tensor:
        """Mean binary cross-entropy of both; `labels` have the bits of `SpanObjective`."""
        words = labels.clamp(min=0)
        bits = torch.stack([words & SPAN_START, words & SPAN_END], dim=-1) > 0
        logits = dense(predictions).float()
        values = F.binary_cross_entropy_with_logits(logits, bits.float(), reduction="none")
        return values.mean(-1) * (labels != IGNORED)

    def divergences(
        self,
        student: Predicted,
        teacher: Predicted,
        labels: Tensor,
        temperature: float,
        table: Tensor,
        kind: Divergence = "kl",
    ) -> Tensor:
        """None: a student that reads what is asked learns something else."""
        raise AssertionError("the config asks for no distillation")

    def sent(self, predictions: Predicted, labels: Tensor) -> Predicted:
        """As they are."""
        return predictions
