"""The loss of a student's scores of slices (`SliceScorer`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tsarch.data.replica_arrays import WindowBatch
from tsarch.losses.spans import region_losses


def parted_scores(found: list[Tensor], num_scores: int) -> tuple[list[Tensor], list[Tensor]]:
    """What a module gave, and so many scores, which come last, apart."""
    end = len(found) - num_scores
    return found[:end], found[end:]


def scorer_loss(
    num_terms: int,
    batches: Sequence[WindowBatch],
    labels: Sequence[Tensor],
    scores: Sequence[Tensor],
) -> Tensor:
    """Σ of `region_losses` over fed passes, each as often as it stands for a window / terms of the
    global batch.

    Args:
        labels: (windows, tokens) of each batch.
        scores: the same shapes.
    """
    total = torch.zeros((), dtype=torch.float64, device=scores[0].device)
    for batch, own, said in zip(batches, labels, scores, strict=True):
        counted = torch.from_numpy(batch.fed * batch.labelled * batch.stands_for)
        total = total + (region_losses(said, own) * counted.to(total.device)).sum()
    return total / num_terms
