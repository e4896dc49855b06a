"""States of several layers side by side, as a drafter is fed with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def with_taps(tapped: Sequence[Tensor], hidden: Tensor) -> Tensor:
    """(…, width) states of some layers and the last ones, side by side; the former with a root mean
    square of 1, since layers' scales differ by orders of magnitude."""
    width = hidden.shape[-1]
    return torch.cat([*(F.rms_norm(own, (width,), eps=1e-6) for own in tapped), hidden], dim=-1)
