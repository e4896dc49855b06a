"""A batch of texts that grow, as one model reads them: some tokens are read, and the first of these
are kept. By the fast path, with transformers' cache, or by reading whole texts again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tsarch.models.decoding_cache import DecodingCache
from tsarch.records import IntArray

Read = Callable[[Tensor, Tensor, Tensor | None, Tensor, DecodingCache], Tensor]
"""(texts, tokens, width) inputs, (texts, slots) mask, (texts, tokens) positions, (texts, tokens)
bool where predictions are wanted, cache → (texts, tokens, …). Without a cache the tokens are whole
texts, as in training, and positions None."""


class GrowingTexts(Protocol):
    """A batch of growing texts as one model sees them."""

    lengths: IntArray
    """(texts,) tokens that were kept."""
    is_ragged: bool
    """Whether texts may keep unlike numbers of the tokens that were read together."""

    def start(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Read and keep the first tokens: (texts, longest, width) inputs, padded on the right, and
        (texts, longest) mask → (texts, longest, …)."""

    def adopt(self, inputs: Tensor) -> None:
        """Take a first token (texts, 1, width) of every text as read and kept."""

    def feed(self, inputs: Tensor, counts: IntArray) -> Tensor:
        """Read the next tokens (texts, tokens, width) of every text, of which the first `counts`
        (texts,) are some; (texts, tokens, …) of them. `keep` says which stay."""

    def keep(self, counts: IntArray) -> None:
        """Keep the first `counts` (texts,) of the tokens that were just read."""

    def restart(self, texts: IntArray) -> None:
        """Forget all tokens so far of some texts (texts,) bool: a new window begins."""

    def reorder(self, parents: IntArray) -> None:
        """Go on with the texts `parents` (new_texts,), in their order."""


class FastGrowingTexts:
    """By the fast path that `cache` has: every token has the slot of its place in the text."""

    is_ragged = True

    def __init__(self, read: Read, cache: DecodingCache) -> None:
        assert cache.fast is not None
        self._read = read
        self._cache = cache
        self._values = cache.fast.values
        self.lengths = self._values.lengths

    def again(self, read: Read) -> FastGrowingTexts:
        """Others that go on from where these are (`FastTexts.again`)."""
        assert self._cache.fast is not None
        return FastGrowingTexts(read, replace(self._cache, fast=self._cache.fast.again()))

    def start(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """See `GrowingTexts`."""
        lengths = mask.sum(1)
        chosen = torch.arange(mask.shape[1], device=mask.device) == lengths.unsqueeze(1) - 1
        found = self._read(inputs, mask, None, chosen, self._cache)
        self.keep(lengths.cpu().numpy())
        return found

    def adopt(self, inputs: Tensor) -> None:
        """See `GrowingTexts`; the fast path has read them."""
        self.keep(np.ones(len(inputs), dtype=np.int64))

    def feed(self, inputs: Tensor, counts: IntArray) -> Tensor:
        """See `GrowingTexts`."""
        every = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        return self._read(inputs, every, None, every.bool(), self._cache)

    def keep(self, counts: IntArray) -> None:
        """See `GrowingTexts`."""
        self._values.keep(counts)
        self.lengths = self._values.lengths

    def restart(self, texts: IntArray) -> None:
        """See `GrowingTexts`."""
        self._values.restart(texts)
        self.lengths = self._values.lengths

    def reorder(self, parents: IntArray) -> None:
        """See `GrowingTexts`."""
        self._cache.reorder(torch.from_numpy(parents))
        self.lengths = self._values.lengths


class SlottedTexts:
    """By transformers' own classes, with a cache or without.

    Every token has a slot. All texts end in the same slot: what is masked (padding, and tokens that
    were forgotten) stands before a text's own, so that distances between slots are those between
    tokens. If `cache` keeps no values, whole texts are read again every time.
    """

    is_ragged = False

    def __init__(self, read: Read, cache: DecodingCache) -> None:
        self._read = read
        self._cache = cache
        self._inputs: Tensor | None = None
        self._mask: Tensor | None = None
        self._num_new = 0
        self.lengths: IntArray = np.empty(0, dtype=np.int64)

    def start(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """See `GrowingTexts`."""
        lengths = mask.sum(1)
        self.lengths = np.zeros(len(mask), dtype=np.int64)
        slots = torch.arange(mask.shape[1], device=mask.device)
        places = slots - (mask.shape[1] - lengths.unsqueeze(1))
        rows = torch.arange(len(mask), device=mask.device).unsqueeze(1)
        # Negative places are those of padding, from the right end.
        self._join(inputs[rows, places], mask[rows, places])
        found = self._read_newest(inputs[rows, places], places.clamp(min=0), 1)
        self.lengths = lengths.cpu().numpy()
        return found[rows, slots - lengths.unsqueeze(1)]

    def adopt(self, inputs: Tensor) -> None:
        """See `GrowingTexts`."""
        self.lengths = np.ones(len(inputs), dtype=np.int64)
        self._join(inputs, torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device))

    def feed(self, inputs: Tensor, counts: IntArray) -> Tensor:
        """See `GrowingTexts`."""
        num_tokens = self._num_new = inputs.shape[1]
        self._join(inputs, torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device))
        # What is read and can't be kept has the last place that can: there may be no further one.
        places = np.minimum(np.arange(num_tokens), counts[:, None] - 1) + self.lengths[:, None]
        return self._read_newest(inputs, torch.from_numpy(places).to(inputs.device), num_tokens)

    def keep(self, counts: IntArray) -> None:
        """See `GrowingTexts`."""
        (count,) = set(counts.tolist())
        num_wrong = self._num_new - count
        self.lengths = self.lengths + counts
        if not num_wrong:
            return
        assert self._mask is not None
        self._mask = self._mask[:, :-num_wrong]
        if self._inputs is not None:
            self._inputs = self._inputs[:, :-num_wrong]
        if self._cache.values is not None:
            self._cache.values.crop(-num_wrong)

    def restart(self, texts: IntArray) -> None:
        """See `GrowingTexts`."""
        assert self._mask is not None
        self.lengths = np.where(texts, 0, self.lengths)
        goes_on = torch.from_numpy(~texts).to(self._mask.device)
        self._mask = self._mask * goes_on.unsqueeze(1)

    def reorder(self, parents: IntArray) -> None:
        """See `GrowingTexts`."""
        if len(parents) == len(self.lengths) and (parents == np.arange(len(parents))).all():
            return
        assert self._mask is not None
        self.lengths = self.lengths[parents]
        places = torch.from_numpy(parents).to(self._mask.device)
        self._mask = self._mask[places]
        self._cache.reorder(places)
        if self._inputs is not None:
            self._inputs = self._inputs[places]

    def _join(self, inputs: Tensor, mask: Tensor) -> None:
        self._mask = _joined(self._mask, mask)
        if self._cache.values is None:
            self._inputs = _joined(self._inputs, inputs)

    def _read_newest(self, inputs: Tensor, positions: Tensor, num_wanted: int) -> Tensor:
        """(texts, tokens, …) of the newest tokens; predictions of the last `num_wanted`."""
        assert self._mask is not None
        num_tokens = inputs.shape[1]
        if self._inputs is None:
            chosen = torch.zeros(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
            chosen[:, num_tokens - num_wanted :] = True
            return self._read(inputs, self._mask, positions, chosen, self._cache)
        slots = _own_slots(self._mask)
        every = torch.arange(len(slots), device=slots.device).unsqueeze(1)
        lengths = self._mask.sum(1, keepdim=True)
        places = torch.arange(slots.shape[1], device=slots.device)
        inside = (places < lengths).to(self._mask.dtype)
        chosen = (places < lengths) & (places >= lengths - num_wanted)
        read = self._read(self._inputs[every, slots], inside, None, chosen, self._cache)
        own = (self._mask.cumsum(1) - 1).clamp(min=0)
        return read[every, own[:, -num_tokens:]]


def _own_slots(mask: Tensor) -> Tensor:
    """(texts, slots) mask → (texts, longest) slots of each text's tokens in their order, others
    after them."""
    longest = int(mask.sum(1).max())
    return torch.argsort((mask == 0).to(torch.int8), dim=1, stable=True)[:, :longest]


def _joined(before: Tensor | None, after: Tensor) -> Tensor:
    return after if before is None else torch.cat([before, after], dim=1)
