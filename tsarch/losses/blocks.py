"""Losses of positions whose logits are too many to hold: made a block of positions at a time, in
the forward pass and again in the backward pass, or for both at once, as Hsu et al. 2024, "Liger
Kernel", does it.

(torch's own `linear_cross_entropy` is the cross-entropy alone. Distillation has logits of both
models, and needs double precision.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsarch.losses.predictions import Logits, Predicted

_BLOCK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 27}
"""Logits of a model that are held at one time: 34 MB in fp32 on CPUs, whose products are as quick
then as with more."""
_PART_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 25}
"""Logits whose losses are computed at one time: what is made of them stays in a CPU's cache."""

Losses = Callable[..., Tensor]
"""fp32 logits (n, vocabulary) of each model and labels (n,) → (n,) losses, each of its own logits
and label alone."""


def losses_by_blocks(
    losses: Losses, predicted: Sequence[Predicted], labels: Tensor, table: Tensor
) -> Tensor:
    """(n,) `losses` of n positions. They have a gradient at the first model's predictions and at
    the table through these; other models are taken as they are.

    Args:
        predicted: of each model (n, table_width) vectors that are compared with the table's rows,
            or logits.
        table: (vocabulary, table_width).
    """
    models = [own.values if isinstance(own, Logits) else own for own in predicted]
    are_logits = [isinstance(own, Logits) for own in predicted]
    trains = torch.is_grad_enabled()
    found: Tensor = _ByBlocks.apply(losses, are_logits, trains, labels, table, *models)  # type: ignore[no-untyped-call]
    return found


class _ByBlocks(torch.autograd.Function):
    """The gradient at vectors is made together with the losses, if that is all that is wanted of
    the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        losses: Losses,
        are_logits: list[bool],
        trains: bool,
        labels: Tensor,
        table: Tensor,
        *models: Tensor,
    ) -> Tensor:
        """See `losses_by_blocks`."""
        *_, for_table, for_own = ctx.needs_input_grad[:6]
        own, gradient = models[0], None
        # In fp16 it needs the scale of the loss, which comes with the backward pass.
        if trains and for_own and not (for_table or are_logits[0] or own.dtype == torch.float16):
            gradient = torch.empty_like(own)
        found = _Positions(losses, are_logits, labels, table, models).run(own_gradient=gradient)
        ctx.arguments, ctx.num_inputs = (losses, are_logits), 5 + len(models)
        ctx.is_made = gradient is not None
        ctx.save_for_backward(*([labels, table, *models] if gradient is None else [gradient]))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients at the table and at the first model's predictions."""
        *_, for_table, for_own = ctx.needs_input_grad[:6]
        at_table = None
        if ctx.is_made:
            (gradient,) = ctx.saved_tensors
            at_own = (gradient * upstream.unsqueeze(1)).to(gradient.dtype)
        else:
            labels, table, *models = ctx.saved_tensors
            at_own = torch.empty_like(models[0]) if for_own else None
            losses, are_logits = ctx.arguments
            if for_table and not are_logits[0]:
                at_table = torch.zeros_like(table)
            positions = _Positions(losses, are_logits, labels, table, models)
            positions.run(upstream, at_own, at_table)
        return (*[None] * 4, at_table, at_own, *[None] * (ctx.num_inputs - 6))


class _Positions:
    """What the losses of n positions are made of; see `losses_by_blocks`."""

    def __init__(
        self,
        losses: Losses,
        are_logits: Sequence[bool],
        labels: Tensor,
        table: Tensor,
        models: Sequence[Tensor],
    ) -> None:
        self._losses = losses
        self._are_logits = are_logits
        self._labels = labels
        self._models = models
        self._tables = {own.dtype: table.to(own.dtype) for own in models}
        """In the dtypes of products."""
        self._vocabulary = len(table)
        self._rooms: dict[int, Tensor] = {}
        """Where the logits of a model lie, those of each block where those before it were."""

    def run(
        self,
        upstream: Tensor | None = None,
        own_gradient: Tensor | None = None,
        table_gradient: Tensor | None = None,
    ) -> Tensor:
        """(n,) losses; fills `own_gradient` and adds to `table_gradient`, if they are given.

        Args:
            upstream: (n,) gradient at the losses; None: 1.
        """
        found = []
        wanted = own_gradient is not None or table_gradient is not None
        for block in self._slices(len(self._labels), _BLOCK_ELEMENTS):
            logits = [self._logits(model, block) for model in range(len(self._models))]
            slopes = logits[0]  # in their place, unless they are somebody's
            if self._are_logits[0] and own_gradient is not None:
                slopes = own_gradient[block]
            for part in self._slices(len(slopes), _PART_ELEMENTS):
                shown = [each[part] for each in logits]
                values, steep = self._at(self._labels[block][part], shown, wanted)
                found.append(values)
                if steep is not None:
                    scale = 1.0 if upstream is None else upstream[block][part].unsqueeze(1)
                    slopes[part] = (steep * scale).to(slopes.dtype)
            if not self._are_logits[0]:
                self._back(slopes, block, own_gradient, table_gradient)
        return torch.cat(found)

    def _back(
        self,
        slopes: Tensor,
        block: slice,
        own_gradient: Tensor | None,
        table_gradient: Tensor | None,
    ) -> None:
        """From the gradient at a block's logits to that at what they are a product of."""
        own = self._models[0]
        if own_gradient is not None:
            torch.mm(slopes, self._tables[own.dtype], out=own_gradient[block])
        if table_gradient is None:
            return
        if own.dtype == table_gradient.dtype:
            table_gradient.addmm_(slopes.t(), own[block])
        else:
            table_gradient += slopes.t() @ own[block]

    def _logits(self, model: int, block: slice) -> Tensor:
        """(positions, vocabulary) of a block."""
        own = self._models[model][block]
        if self._are_logits[model]:
            return own
        if model not in self._rooms:
            self._rooms[model] = own.new_empty(len(own), self._vocabulary)
        return torch.mm(own, self._tables[own.dtype].t(), out=self._rooms[model][: len(own)])

    def _at(
        self, labels: Tensor, logits: Sequence[Tensor], with_slopes: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(n,) losses, and (n, vocabulary) their derivatives by the first model's logits."""
        own, *others = (each.float() for each in logits)
        if not with_slopes:
            return self._losses(own, *others, labels), None
        with torch.enable_grad():
            own = own.detach().requires_grad_()
            values = self._losses(own, *others, labels)
            (slopes,) = torch.autograd.grad(values.sum(), own)
        return values.detach(), slopes

    def _slices(self, length: int, most: dict[str, int]) -> Iterator[slice]:
        """So many positions at a time that there are no more than `most` logits; of none one."""
        kind = "cpu" if self._labels.device.type == "cpu" else "cuda"
        size = max(most[kind] // self._vocabulary, 1)
        for start in range(0, max(length, 1), size):
            yield slice(start, min(start + size, length))
