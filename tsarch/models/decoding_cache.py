"""Keys and values of the tokens so far, of one model and a batch of texts that are generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class DecodingCache:
    """What a model keeps between tokens."""

    values: Any = None
    """transformers' cache of the layers' keys and values; None: nothing is kept."""
    source: Tensor | None = None
    """(batch, source_tokens, width) output of a sequence-to-sequence model's encoder."""
    source_mask: Tensor | None = None
    """(batch, source_tokens)."""

    def reorder(self, parents: Tensor) -> None:
        """Keep the texts `parents` (new_batch,), in their order; one may come several times."""
        if self.values is not None:
            self.values.reorder_cache(parents)
        if self.source is not None and self.source_mask is not None:
            self.source = self.source[parents]
            self.source_mask = self.source_mask[parents]


def kept_values(is_seq2seq: bool) -> Any:
    """An empty cache of keys and values, of self-attention and, for sequence-to-sequence models, of
    the attention to the source."""
    from transformers import DynamicCache, EncoderDecoderCache

    if is_seq2seq:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache()
