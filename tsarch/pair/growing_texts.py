"""A batch of texts that grow token by token, as one model reads them, with a cache or without."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tsarch.models.decoding_cache import DecodingCache

Read = Callable[[Tensor, Tensor, Tensor, DecodingCache], Tensor]
"""(texts, tokens, width) inputs, (texts, slots) mask, (texts, tokens) positions, cache →
(texts, tokens, …)."""


class GrowingTexts:
    """A batch of growing texts as one model sees them.

    Every token has a slot; slots of padding, and of tokens that were forgotten, are masked. If
    `cache` keeps no values, all slots are read again for every token: the same result, for tests
    and where a cache takes more than it saves.
    """

    def __init__(self, read: Read, cache: DecodingCache) -> None:
        self._read = read
        self._cache = cache
        self._inputs: Tensor | None = None
        self._mask: Tensor | None = None
        self._positions: Tensor | None = None

    def adopt(self, inputs: Tensor, mask: Tensor, positions: Tensor) -> None:
        """Take the next tokens of every text as read."""
        self._mask = _joined(self._mask, mask)
        self._positions = _joined(self._positions, positions)
        if self._cache.values is None:
            self._inputs = _joined(self._inputs, inputs)

    def feed(self, inputs: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Read the next tokens (texts, tokens, width) of every text; (texts, tokens, …) of them."""
        self.adopt(inputs, mask, positions)
        assert self._mask is not None
        assert self._positions is not None
        if self._inputs is None:
            return self._read(inputs, self._mask, positions, self._cache)
        every = self._read(self._inputs, self._mask, self._positions, self._cache)
        return every[:, -inputs.shape[1] :]

    def forget(self, texts: Tensor) -> None:
        """Mask all tokens so far of some texts (texts,) bool: a new window begins."""
        assert self._mask is not None
        self._mask = self._mask * (~texts).unsqueeze(1)

    def reorder(self, parents: Tensor) -> None:
        """Go on with the texts `parents` (new_texts,), in their order."""
        assert self._mask is not None
        assert self._positions is not None
        self._mask, self._positions = self._mask[parents], self._positions[parents]
        self._cache.reorder(parents)
        if self._inputs is not None:
            self._inputs = self._inputs[parents]


def _joined(before: Tensor | None, after: Tensor) -> Tensor:
    return after if before is None else torch.cat([before, after], dim=1)
