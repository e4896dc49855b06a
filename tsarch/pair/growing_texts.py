"""A batch of texts that grow token by token, as one model reads them, with a cache or without."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tsarch.models.decoding_cache import DecodingCache

Read = Callable[[Tensor, Tensor, Tensor | None, DecodingCache], Tensor]
"""(texts, tokens, width) inputs, (texts, slots) mask, (texts, tokens) positions, cache →
(texts, tokens, …). Without a cache the tokens are whole texts, as in training, and positions None.
"""


class GrowingTexts:
    """A batch of growing texts as one model sees them.

    Every token has a slot. All texts end in the same slot: what is masked (padding, and tokens that
    were forgotten) stands before a text's own, so that distances between slots are those between
    tokens. If `cache` keeps no values, whole texts are read again for every token.
    """

    def __init__(self, read: Read, cache: DecodingCache) -> None:
        self._read = read
        self._cache = cache
        self._inputs: Tensor | None = None
        self._mask: Tensor | None = None

    def adopt(self, inputs: Tensor, mask: Tensor) -> None:
        """Take the next tokens of every text as read."""
        self._mask = _joined(self._mask, mask)
        if self._cache.values is None:
            self._inputs = _joined(self._inputs, inputs)

    def feed(self, inputs: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Read the next tokens (texts, tokens, width) of every text; (texts, tokens, …) of them."""
        self.adopt(inputs, mask)
        assert self._mask is not None
        if self._inputs is None:
            return self._read(inputs, self._mask, positions, self._cache)
        slots = _own_slots(self._mask)
        every = torch.arange(len(slots), device=slots.device).unsqueeze(1)
        lengths = self._mask.sum(1, keepdim=True)
        inside = (torch.arange(slots.shape[1], device=slots.device) < lengths).to(self._mask.dtype)
        read = self._read(self._inputs[every, slots], inside, None, self._cache)
        places = (self._mask.cumsum(1) - 1).clamp(min=0)
        return read[every, places[:, -inputs.shape[1] :]]

    def forget(self, texts: Tensor) -> None:
        """Mask all tokens so far of some texts (texts,) bool: a new window begins."""
        assert self._mask is not None
        self._mask = self._mask * (~texts).unsqueeze(1)

    def reorder(self, parents: Tensor) -> None:
        """Go on with the texts `parents` (new_texts,), in their order."""
        assert self._mask is not None
        self._mask = self._mask[parents]
        self._cache.reorder(parents)
        if self._inputs is not None:
            self._inputs = self._inputs[parents]


def _own_slots(mask: Tensor) -> Tensor:
    """(texts, slots) mask → (texts, longest) slots of each text's tokens in their order, others
    after them."""
    longest = int(mask.sum(1).max())
    return torch.argsort((mask == 0).to(torch.int8), dim=1, stable=True)[:, :longest]


def _joined(before: Tensor | None, after: Tensor) -> Tensor:
    return after if before is None else torch.cat([before, after], dim=1)
