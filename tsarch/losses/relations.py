"""Distillation of relations: how the positions of a window stand to one another.

Wang et al. 2020, "MiniLM", equations 3 to 6; Wang et al. 2021, "MiniLMv2", section 3.1, for
relation heads: queries, keys and values of all attention heads side by side, split anew into as
many heads in teacher and student, whose widths and attention heads may so differ.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tsarch.losses.token import divergence

_NEVER = -1e30
"""Score of positions that nobody can be related to."""


def relation_divergence(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    readable: Tensor,
    num_heads: int,
) -> Tensor:
    """KL(teacher ‖ student) of the relations of each position → (windows, tokens) fp64, the mean
    over the heads.

    A relation of head a is softmax(A·Bᵀ / √width): for values A and B are the values, for attention
    the queries and the keys. In double precision, as `losses.token.distillation`.

    Args:
        student: A, B, each (windows, tokens, width), `num_heads` times the width of a head.
        teacher: the same, of the teacher's width.
        readable: (windows, tokens) bool, positions that relations are to; at others they are 0.
    """
    own, other = (_log_relations(*pair, readable, num_heads) for pair in (student, teacher))
    return divergence(own, other, "kl", dim=-1).mean(1)


def _log_relations(a: Tensor, b: Tensor, readable: Tensor, num_heads: int) -> Tensor:
    """(windows, heads, tokens, tokens) fp64 log-probabilities."""
    rows, columns = (
        own.float().reshape(*own.shape[:2], num_heads, -1).transpose(1, 2) for own in (a, b)
    )
    scores = torch.matmul(rows, columns.transpose(2, 3)).double() * rows.shape[-1] ** -0.5
    return F.log_softmax(scores.masked_fill(~readable[:, None, None, :], _NEVER), dim=-1)
