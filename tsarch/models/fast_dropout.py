"""Dropout whose random numbers cost next to nothing on CPUs.

torch draws them there one by one, 12 ns each, which is a twentieth of a training step in fp32 and a
fifth in bf16. Here a generator of NumPy's gives four at a time, 16 bits each, seeded from torch's:
what is dropped still follows from torch's state alone, which seeds, checkpoints and recomputed
activations rely on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
_RANGE = 2**16
# An operation of its own, so that plans see what it makes and try out how long it takes.
_PLACES = "tsarch::kept_places"
torch.library.define(
    _PLACES,
    "(int[] shape, int threshold) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),
)


@torch.library.impl(_PLACES, "default")
def _draw(shape: Sequence[int], threshold: int) -> Tensor:
    seed = int(torch.randint(2**63 - 1, ()))
    num_places = int(np.prod(shape, dtype=np.int64))
    drawn = np.random.SFC64(seed).random_raw(-(-num_places // 4)).view(np.uint16)[:num_places]
    kept = torch.empty(tuple(shape), dtype=torch.uint8)
    np.less(drawn, np.uint16(threshold), out=kept.view(-1).numpy().view(np.bool_))
    return kept


@torch.library.register_fake(_PLACES)  # type: ignore[untyped-decorator]
def _outline(shape: Sequence[int], threshold: int) -> Tensor:
    return torch.empty(tuple(shape), dtype=torch.uint8)


def kept_places(shape: Sequence[int], probability: float) -> tuple[Tensor, float]:
    """Draw what dropout keeps: uint8 of `shape`, 0 with `probability` (to 16 bits) and else 1, and
    the factor on what is kept that leaves means as they are."""
    threshold = max(round((1.0 - probability) * _RANGE), 1)
    if threshold >= _RANGE:
        return torch.ones(tuple(shape), dtype=torch.uint8), 1.0
    kept: Tensor = torch.ops.tsarch.kept_places(shape, threshold)
    return kept, _RANGE / threshold


def only_kept(values: Tensor, kept: Tensor, scale: float) -> Tensor:
    """Values where `kept` is 1, times `scale`; 0 elsewhere."""
    return (values * kept.to(values.dtype)).mul_(scale)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, probability: float) -> Tensor:
        kept, ctx.scale = kept_places(values.shape, probability)
        ctx.save_for_backward(kept)
        return only_kept(values, kept, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (kept,) = ctx.saved_tensors
        return only_kept(grads[0], kept, ctx.scale), None


class FastDropout(nn.Dropout):
    """`nn.Dropout`, by `kept_places` on CPUs."""

    def forward(self, values: Tensor) -> Tensor:
        """Drop values while training."""
        drops = self.training and 0.0 < self.p < 1.0
        if not drops or values.device.type != "cpu" or not values.is_floating_point():
            return super().forward(values)
        dropped: Tensor = _Dropped.apply(values, self.p)  # type: ignore[no-untyped-call]
        return dropped


def use_fast_dropout(module: M) -> M:
    """Have all plain dropout layers of a module draw by `kept_places`; returns the module."""
    for own in module.modules():
        if type(own) is nn.Dropout and not own.inplace:
            own.__class__ = FastDropout
    return module
