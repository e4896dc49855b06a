"""What a model keeps of the tokens so far, for a batch of texts that are generated."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from tsarch.models.fast_path import FastTexts
from tsarch.models.inner_states import InnerStates, watching
from tsarch.models.taps import with_taps

_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers (`layer_types` of a config) that keep keys and values and nothing else."""


@dataclass
class DecodingCache:
    """What a model keeps between tokens."""

    values: Any = None
    """transformers' cache of the layers' keys and values; None: it keeps nothing."""
    fast: FastTexts | None = None
    """What the fast path keeps, which then runs in place of the layers."""
    source: Tensor | None = None
    """(batch, source_tokens, width) output of a sequence-to-sequence model's encoder."""
    source_mask: Tensor | None = None
    """(batch, source_tokens)."""

    def reorder(self, parents: Tensor) -> None:
        """Keep the texts `parents` (new_batch,), in their order; one may come several times."""
        if self.fast is not None:
            self.fast.reorder(parents)
        if self.values is not None:
            self.values.reorder_cache(parents)
        if self.source is not None and self.source_mask is not None:
            self.source = self.source[parents]
            self.source_mask = self.source_mask[parents]


@dataclass(frozen=True)
class Decoding:
    """How a model reads a text on from where it was."""

    keeps_values: bool
    """Whether keys and values are all that its layers need of earlier tokens. The state of a
    recurrent layer can't be taken back to where a window begins."""
    takes_positions: bool
    first_position: int
    """Number of a text's first place; RoBERTa's kin count from the row after padding's."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Decoding:
        """That of a causal model, or of the decoder of a sequence-to-sequence one."""
        arguments = inspect.signature(model.forward).parameters
        kinds = getattr(model.config, "layer_types", None) or ()
        return cls(
            "past_key_values" in arguments
            and not getattr(model, "_is_stateful", False)
            and _ATTENTION.issuperset(kinds),
            "position_ids" in arguments,
            _first_position(model),
        )

    def options(self, positions: Tensor | None, cache: DecodingCache | None) -> dict[str, Any]:
        """Arguments of the model: (batch, tokens) places in the text, where they aren't 0, 1, 2, …,
        and what it has kept."""
        options: dict[str, Any] = {}
        if positions is not None and self.takes_positions:
            options["position_ids"] = positions + self.first_position
        if cache is not None and cache.values is not None:
            options |= {"past_key_values": cache.values, "use_cache": True}
        return options


def read_on(
    backbone: PreTrainedModel,
    embeds: Tensor,
    mask: Tensor,
    options: dict[str, Any],
    cache: DecodingCache | None,
    inner: InnerStates | None = None,
    taps: Sequence[int] = (),
) -> Tensor:
    """(texts, tokens, width) embeddings → hidden states, by the backbone or its fast path, which
    knows its `taps` (see `TeacherModel`); beside them what `inner` records."""
    if cache is not None and cache.fast is not None:
        return cache.fast.read(embeds)
    if taps:
        options = {**options, "output_hidden_states": True}
    with watching(inner):
        found = backbone(inputs_embeds=embeds, attention_mask=mask, **options)
    hidden: Tensor = found.last_hidden_state
    if taps:
        hidden = with_taps([found.hidden_states[tap] for tap in taps], hidden)
    return hidden if inner is None else inner.beside(hidden)


def kept_values(is_seq2seq: bool) -> Any:
    """An empty cache of keys and values, of self-attention and, for sequence-to-sequence models, of
    the attention to the source."""
    from transformers import DynamicCache, EncoderDecoderCache

    if is_seq2seq:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache()


def _first_position(model: PreTrainedModel) -> int:
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0
