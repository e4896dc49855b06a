"""Token-level losses: stateless, per position, so that the caller does the normalising."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tsarch.config.base import Divergence
from tsarch.records import IGNORED


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(…, num_labels), (…) → (…) fp32 negative log-likelihood, 0 where `labels` is `IGNORED`."""
    flat = F.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(labels.shape)


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None, focal_gamma: float
) -> Tensor:
    """(…, num_labels), (…) → (…) fp32 wᵧ·(1 − pᵧ)^γ·(−log pᵧ) of the label y, 0 where `labels` is
    `IGNORED`.

    The focal loss of Lin et al. 2017, "Focal Loss for Dense Object Detection", equations 4 and 5.

    Args:
        weights: (num_labels,) w; None: 1 for all.
        focal_gamma: γ; 0: plain cross-entropy.
    """
    values = cross_entropy(logits, labels)
    if focal_gamma > 0:
        # −expm1(−nll) is 1 − p, and has a gradient where p rounds to 1.
        values = values * (-torch.expm1(-values)).clamp(min=0) ** focal_gamma
    if weights is not None:
        values = values * weights.to(values.device)[labels.clamp(min=0)]
    return values


def distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    kind: Divergence = "kl",
) -> Tensor:
    """(…) fp64 T²·`divergence` of the distributions at temperature T, 0 where `labels` is
    `IGNORED`.

    Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2.
    In double precision: the KL of two near distributions is a small difference of large terms,
    which in fp32 loses an order of magnitude of the equality between topologies.
    """
    log_student = F.log_softmax(student_logits.double() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher_logits.double() / temperature, dim=-1)
    divergences = divergence(log_student, log_teacher, kind, dim=-1)
    return divergences * (temperature**2) * (labels != IGNORED)


def confidence(logits: Tensor) -> Tensor:
    """(…, num_labels) → (…) fp32 probability of the likeliest label."""
    return F.softmax(logits.float(), dim=-1).amax(-1)


def divergence(log_student: Tensor, log_teacher: Tensor, kind: Divergence, dim: int) -> Tensor:
    """From the teacher's to the student's distribution, of log-probabilities along `dim`.

    `kl`: KL(teacher ‖ student), which asks the student to be wherever the teacher is. `reverse_kl`:
    KL(student ‖ teacher), to be nowhere where the teacher isn't (Gu et al. 2024, "MiniLLM").
    `jensen_shannon`: the mean of both KLs to the mean of the two, at most log 2 (Agarwal et al.
    2024, "On-Policy Distillation of Language Models", equation 1 with β = ½).
    """
    if kind == "kl":
        return _kl(log_teacher, log_student, dim)
    if kind == "reverse_kl":
        return _kl(log_student, log_teacher, dim)
    middle = torch.logaddexp(log_student, log_teacher) - math.log(2)
    return (_kl(log_teacher, middle, dim) + _kl(log_student, middle, dim)) / 2


def _kl(log_p: Tensor, log_q: Tensor, dim: int) -> Tensor:
    """KL(p ‖ q)."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim)
