"""Keys and values of growing texts, in memory that is taken once; every text has its own length."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tsarch.records import IntArray


@dataclass(frozen=True)
class ValueSizes:
    """What a model's layers keep of a token."""

    num_layers: int
    num_heads: int
    """Of keys and values; several heads of queries may share one."""
    head_width: int
    group: int
    """Heads of queries that share one."""


@dataclass(frozen=True)
class Span:
    """The tokens that one pass reads: equally many of every text, where each goes on."""

    places: Tensor
    """(texts, tokens) of each in its text, which are its slots too."""
    first: int | None
    """The first place, where it is the same in all texts."""
    num_slots: int
    """Slots that are looked at."""
    sees: Tensor | None
    """(texts, tokens, slots) bool; None: every token all of them."""
    opens: bool
    """Whether it is read by itself, as nothing stands before it in any text."""


class StaticValues:
    """Slots of a batch of texts: token i of a text is in slot i, so that a text is cut back by
    counting fewer, and what stands behind its end is written over.

    Args:
        whole: attention goes over all slots in every pass but the first, so that sums don't depend
            on how long texts are.
    """

    def __init__(
        self,
        sizes: ValueSizes,
        num_texts: int,
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device,
        whole: bool = False,
    ) -> None:
        shape = (num_texts, sizes.num_heads, num_slots, sizes.head_width)
        self._kept = [
            torch.zeros(2, *shape, dtype=dtype, device=device) for _ in range(sizes.num_layers)
        ]
        self._group = sizes.group
        self._whole = whole
        self._num_slots = num_slots
        self._has_begun = False
        self.lengths: IntArray = np.zeros(num_texts, dtype=np.int64)
        """(texts,) tokens that count."""

    def span(self, num_tokens: int) -> Span:
        """The next tokens of every text."""
        device = self._kept[0].device
        texts = torch.from_numpy(self.lengths).to(device)
        places = texts.unsqueeze(1) + torch.arange(num_tokens, device=device)
        last = int(self.lengths.max()) + num_tokens
        if last > self._num_slots:
            self._grow(2 * last)
        first = int(self.lengths[0]) if (self.lengths == self.lengths[0]).all() else None
        num_slots = self._num_slots if self._whole else last
        sees = None
        if num_tokens > 1 or first is None or self._whole:
            sees = torch.arange(num_slots, device=device) <= places.unsqueeze(2)
        opens = first == 0 and not (self._whole and self._has_begun)
        return Span(places, first, num_slots, sees, opens)

    def _grow(self, num_slots: int) -> None:
        assert not self._whole, "the texts are longer than was planned"
        more = num_slots - self._num_slots
        self._kept = [F.pad(kept, (0, 0, 0, more)) for kept in self._kept]
        self._num_slots = num_slots

    def keep(self, counts: IntArray) -> None:
        """Let the first `counts` (texts,) tokens of the last span count."""
        self.lengths = self.lengths + counts
        self._has_begun = True

    def again(self) -> StaticValues:
        """See `FastTexts.again`."""
        own = copy.copy(self)
        own._kept = list(self._kept)
        return own

    def restart(self, texts: IntArray) -> None:
        """Let some texts (texts,) bool begin anew."""
        self.lengths = np.where(texts, 0, self.lengths)

    def reorder(self, parents: Tensor) -> None:
        """Go on with the texts `parents`, in their order."""
        own = parents.cpu().numpy()
        if len(own) == len(self.lengths) and (own == np.arange(len(own))).all():
            return
        self.lengths = self.lengths[own]
        self._kept = [kept[:, parents] for kept in self._kept]

    def attend(
        self,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        span: Span,
        scale: float,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Keep the keys and values of a span, and look at all so far.

        Args:
            queries: (texts, tokens, heads, width).
            keys: (texts, tokens, kept heads, width), as `values`.
            bias: (texts, heads, tokens, slots) added to the scores, −inf where a token doesn't see
                a slot, where each head has keys of its own; None: none.

        Returns: (texts, tokens, heads × width).
        """
        kept = self._kept[layer]
        self._put(kept, keys, values, span)
        if span.opens and bias is None:
            return _causal(queries, keys, values, scale)
        texts, tokens, heads, width = queries.shape
        group = self._group
        rows = queries.view(texts, tokens, heads // group, group, width)
        rows = rows.permute(0, 2, 3, 1, 4).reshape(texts, heads // group, group * tokens, width)
        mask = bias
        if mask is None and span.sees is not None:
            slots = span.sees.shape[-1]
            mask = span.sees[:, None, None].expand(texts, 1, group, tokens, slots)
            mask = mask.reshape(texts, 1, group * tokens, slots)
        there = kept[:, :, :, : span.num_slots]
        found = F.scaled_dot_product_attention(rows, there[0], there[1], mask, scale=scale)
        found = found.view(texts, heads // group, group, tokens, width).permute(0, 3, 1, 2, 4)
        return found.reshape(texts, tokens, heads * width)

    @staticmethod
    def _put(kept: Tensor, keys: Tensor, values: Tensor, span: Span) -> None:
        if span.first is not None:
            into = kept[:, :, :, span.first : span.first + keys.shape[1]]
            into[0].copy_(keys.transpose(1, 2))
            into[1].copy_(values.transpose(1, 2))
            return
        texts = torch.arange(len(keys), device=keys.device).unsqueeze(1)
        kept[0][texts, :, span.places] = keys
        kept[1][texts, :, span.places] = values


def _causal(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Attention among the first tokens of texts, padded at their ends, which nothing sees."""
    group = queries.shape[2] // keys.shape[2]
    parts = [queries, keys.repeat_interleave(group, 2), values.repeat_interleave(group, 2)]
    query, key, value = (part.transpose(1, 2) for part in parts)
    found = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    return found.transpose(1, 2).flatten(2)
