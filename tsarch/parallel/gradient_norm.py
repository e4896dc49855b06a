"""Clipping by a global norm, the same for an engine's gradients and the tied embedding's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def clip_by_global_norm(gradients: Sequence[Tensor], clip_norm: float) -> float:
    """Scale gradients in place so that their common norm is at most `clip_norm` (0: no limit).

    Returns the norm before. Rows are summed in fp32, their sums in double precision: ZeRO's norm to
    a few 1e-9. torch's own clipping sums all in fp32, 5e-6 off for ten million parameters, which
    would show in every later loss.
    (Pascanu, Mikolov & Bengio 2013, section 3.2.)
    """
    norms = [_norm(gradient) for gradient in gradients]
    norm = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
    if clip_norm > 0 and norm > clip_norm:
        torch._foreach_mul_(list(gradients), clip_norm / (norm + 1e-6))
    return norm


def _norm(gradient: Tensor) -> Tensor:
    """() double. In double precision throughout torch would copy the whole gradient first."""
    if gradient.dim() > 1 and gradient.dtype == torch.float32:
        gradient = torch.linalg.vector_norm(gradient, dim=-1)
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=torch.float64)
    return norm
