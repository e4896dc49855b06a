"""Token-level losses: stateless, per position, so that the caller does the normalising."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tsarch.records import IGNORED


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(…, num_labels), (…) → (…) fp32 negative log-likelihood, 0 where `labels` is `IGNORED`."""
    flat = F.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(labels.shape)


def distillation(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """(…) fp64 T²·KL(teacher ‖ student) at temperature T, 0 where `labels` is `IGNORED`.

    Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2.
    In double precision: the KL of two near distributions is a small difference of large terms,
    which in fp32 loses an order of magnitude of the equality between topologies.
    """
    log_student = F.log_softmax(student_logits.double() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher_logits.double() / temperature, dim=-1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return divergence * (temperature**2) * (labels != IGNORED)
