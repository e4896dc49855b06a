"""Products of a few rows with a matrix that stays, as there are when texts are written.

A CPU's libraries lay a matrix out anew in every product, which then takes longer than the product
itself: in fp32 from four rows on, in bf16 from one. Laid out once, as torch's own compiler does it,
fp32 products of 4 to 16 rows are 1.5 to 2 times as fast; the matrix is then held twice.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST = {torch.float32: 4, torch.bfloat16: 1}
"""Rows; for fewer the matrix is read as it lies."""
_MOST = 64
"""Rows; of more the product itself takes the time."""


class FewRows:
    """(…, inputs) → (…, outputs) by a matrix and a bias that nobody trains.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,) or none.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = weight
        self._bias = bias
        self._least = _LEAST[weight.dtype] if _may_be_laid_out(weight) else _MOST + 1
        self._laid_out: Tensor | None = None
        """The matrix as products of few rows read it, once there was one."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """The product."""
        rows = inputs.numel() // inputs.shape[-1]
        if not self._least <= rows <= _MOST:
            return F.linear(inputs, self._weight, self._bias)
        if self._laid_out is None:
            self._laid_out = torch.ops.mkldnn._reorder_linear_weight(self._weight, None)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._laid_out, self._bias, "none", [], ""
        )
        return product


def _may_be_laid_out(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype in _LEAST
        and weight.numel() > 0
        and torch._C._has_mkldnn
        and (weight.dtype is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )
