"""The loss of a stage whose student proposes what its teacher says next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tsarch.losses.predictions import Logits
from tsarch.records import IGNORED
from tsarch.tasks.collect import WindowOutputs

_LATER_STEP = 0.8
"""Weight of a step, against the one before."""


def drafting_loss(
    steps: Sequence[Sequence[WindowOutputs]],
    choices: Tensor,
    divergence: Callable[[WindowOutputs], Tensor],
) -> tuple[Tensor, float]:
    """The weighted mean over a drafter's steps of Σ weight · divergence from the teacher, and that
    of the first step. The first places, of further steps more of them, have no teacher's state
    before them.

    Args:
        steps: per step each batch's predictions, all with the labels of the first.
        choices: (tokens,) that it chooses from; the divergence is among them.
        divergence: of a batch, (windows, tokens), 0 where labels are `IGNORED`.
    """
    sums = []
    for step, outputs in enumerate(steps):
        total = torch.zeros((), dtype=torch.double, device=choices.device)
        for output in outputs:
            if output.teacher is not None:  # which doesn't come along while nothing is learned
                total = total + _sum(output, step, choices, divergence)
        sums.append(total)
    weights = [_LATER_STEP**step for step in range(len(sums))]
    weighed = torch.stack([own * weight for own, weight in zip(sums, weights, strict=True)])
    return weighed.sum() / sum(weights), float(sums[0].detach())


def _sum(
    output: WindowOutputs,
    step: int,
    choices: Tensor,
    divergence: Callable[[WindowOutputs], Tensor],
) -> Tensor:
    labels, teacher = output.labels, output.teacher
    labels = labels.clone()
    labels[:, : step + 1] = IGNORED
    if isinstance(teacher, Logits):
        teacher = Logits(teacher.values[:, choices], teacher.chosen)
    table = output.table.index_select(0, choices)
    own = replace(output, labels=labels, teacher=teacher, table=table)
    weight = torch.from_numpy(output.batch.weight).to(choices.device).unsqueeze(1)
    return (divergence(own) * weight).sum()
