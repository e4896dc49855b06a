"""Distillation of hidden states: how far the student's own are from the teacher's."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tsarch.config.base import HiddenLoss


def hidden_distance(student: Tensor, teacher: Tensor, kind: HiddenLoss) -> Tensor:
    """(…, width), (…, width) → (…) fp32, from 0 where they are equal.

    `cosine`: 1 − the cosine of their angle (Sanh et al. 2019, "DistilBERT", section 3), as half of
    the squared distance of both at length 1, which is exact where they are nearly equal. `mse`: the
    mean over the width of squared differences (Jiao et al. 2020, "TinyBERT", equation 8).
    """
    own, other = student.float(), teacher.float()
    if kind == "cosine":
        return (F.normalize(own, dim=-1) - F.normalize(other, dim=-1)).square().sum(-1) / 2
    return (own - other).square().mean(-1)
