"""Contexts of which each rank has a slice, whole again: for losses that look at all positions of a
context at once, and then at few numbers of each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tsarch.data.context_slices import ContextSlice

Gather = Callable[[Tensor], Tensor]
"""(1, tokens, …) of each of the ranks that share contexts → (1, tokens of all, …) on each of them,
in their order. All these ranks call it together, and in the backward pass again."""


class WholeContexts:
    """From a slice to whole contexts, and back.

    Args:
        place: of the slice among those of its contexts.
    """

    def __init__(self, gather: Gather, own: ContextSlice, place: int) -> None:
        lengths = torch.from_numpy(own.lengths)
        self._gather = gather
        self._inside = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
        self._num_tokens = own.num_tokens
        self._start = place * own.num_tokens

    def of(self, own: Tensor, elsewhere: float) -> Tensor:
        """(1, tokens, …) of the slice → (contexts, tokens, …), `elsewhere` at padding."""
        inside = self._inside.to(own.device)
        flat = self._gather(own)[0, : int(inside.sum())]
        whole = own.new_full((*inside.shape, *own.shape[2:]), elsewhere)
        found: Tensor = whole.index_put(tuple(inside.nonzero(as_tuple=True)), flat)
        return found

    def slice_of(self, whole: Tensor) -> Tensor:
        """(contexts, tokens, …) → (1, tokens, …) of the slice."""
        flat = whole[self._inside.to(whole.device)][self._start :][: self._num_tokens]
        num_more = self._num_tokens - len(flat)
        padding = (0, 0) * (flat.dim() - 1) + (0, num_more)
        return nn.functional.pad(flat, padding).unsqueeze(0)
