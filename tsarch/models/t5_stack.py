"""Decoder layers of T5's kin for reading few tokens at a time: as `causal_stack`, with attention
to a source whose keys and values are computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsarch.models.fused import Function, UnlikeError, check_alike, joined, norm_of
from tsarch.models.static_values import Span, StaticValues, ValueSizes

_STACK = {"embed_tokens", "block", "final_layer_norm", "dropout"}
_ATTENTION = {"q", "k", "v", "o"}
_BIAS = "relative_attention_bias"
"""Of the first layer, used in all."""


@dataclass(frozen=True)
class _Layer:
    before_attention: Function
    queries_keys_values: Function
    output: Function
    before_source: Function
    source_queries: Function
    source_keys_values: Function
    source_output: Function
    before_mlp: Function
    mlp: Function


class T5Stack:
    """All layers of such a decoder; arguments and errors as `CausalStack`'s."""

    longest: int | None = None

    def __init__(self, model: nn.Module, dtype: torch.dtype, share: bool) -> None:
        decoder: Any = getattr(model, "decoder", None)
        if decoder is None or {name for name, _ in decoder.named_children()} != _STACK:
            raise UnlikeError
        blocks = list(decoder.block)
        check_alike(blocks, but=("has_relative_attention_bias", _BIAS))
        attention = blocks[0].layer[0].SelfAttention
        if {name for name, _ in attention.named_children()} != _ATTENTION | {_BIAS}:
            raise UnlikeError
        if any(hasattr(block.layer[0].SelfAttention, _BIAS) for block in blocks[1:]):
            raise UnlikeError  # each layer has its own (UMT5)
        self._heads = int(attention.n_heads)
        width = int(attention.key_value_proj_dim)
        self.sizes = ValueSizes(len(blocks), self._heads, width, 1)
        self.dtype = dtype
        self._attention = attention
        self._by_distance: Tensor | None = None
        """(slots, heads) what is added to scores by how far a token is back; grows with texts."""
        self._norm = norm_of(decoder.final_layer_norm, dtype)
        self._layers = [_functions(block, dtype, share) for block in blocks]

    def source(self, states: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """(texts, source_tokens, width) states of a source → per layer (2, texts, heads,
        source_tokens, head_width) keys and values, and (texts, 1, 1, source_tokens) bool."""
        states = states.to(self.dtype)
        shape = (*states.shape[:2], 2, self._heads, self.sizes.head_width)
        found = [layer.source_keys_values(states).view(shape) for layer in self._layers]
        return [own.permute(2, 0, 3, 1, 4).contiguous() for own in found], mask.bool()[
            :, None, None
        ]

    def read(
        self, embeds: Tensor, values: StaticValues, span: Span, source: tuple[list[Tensor], Tensor]
    ) -> Tensor:
        """(texts, tokens, width) embeddings of a span → hidden states."""
        hidden = embeds.to(self.dtype)
        texts, tokens = hidden.shape[:2]
        bias, (sources, mask) = self._bias(span), source
        heads, width = self._heads, self.sizes.head_width
        for number, layer in enumerate(self._layers):
            found = layer.queries_keys_values(layer.before_attention(hidden))
            query, key, value = found.view(texts, tokens, 3, heads, width).unbind(2)
            seen = values.attend(number, query, key, value, span, 1.0, bias)
            hidden = hidden + layer.output(seen)
            query = layer.source_queries(layer.before_source(hidden))
            query = query.view(texts, tokens, heads, width).transpose(1, 2)
            key, value = sources[number]
            seen = F.scaled_dot_product_attention(query, key, value, mask, scale=1.0)
            hidden = hidden + layer.source_output(seen.transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(layer.before_mlp(hidden))
        return self._norm(hidden)

    def _bias(self, span: Span) -> Tensor:
        """(texts, heads, tokens, slots) what is added to scores, by how far tokens are apart."""
        known = self._by_distance
        if known is None or len(known) < span.num_slots:
            self._by_distance = known = self._biases(2 * span.num_slots, span.places.device)
        if span.first is not None and span.places.shape[1] == 1:  # the last of all slots
            back = known[: span.first + 1].flip(0).t()
            return F.pad(back, (0, span.num_slots - span.first - 1), value=-torch.inf)[
                None, :, None
            ]
        slots = torch.arange(span.num_slots, device=span.places.device)
        apart = span.places.unsqueeze(2) - slots
        bias = known[apart.clamp(min=0)]
        bias = bias.masked_fill((apart < 0).unsqueeze(3), -torch.inf)
        by_head: Tensor = bias.permute(0, 3, 1, 2)
        return by_head

    def _biases(self, num_slots: int, device: torch.device) -> Tensor:
        """(num_slots, heads) by distance."""
        own = self._attention
        buckets = own._relative_position_bucket(
            -torch.arange(num_slots, device=device),
            bidirectional=False,
            num_buckets=own.relative_attention_num_buckets,
            max_distance=own.relative_attention_max_distance,
        )
        biases: Tensor = own.relative_attention_bias(buckets).to(self.dtype)
        return biases


def _functions(block: Any, dtype: torch.dtype, share: bool) -> _Layer:
    if len(block.layer) != 3:
        raise UnlikeError
    own, other, last = block.layer
    attention, to_source, mlp = own.SelfAttention, other.EncDecAttention, last.DenseReluDense
    return _Layer(
        norm_of(own.layer_norm, dtype),
        joined([attention.q, attention.k, attention.v], dtype, share),
        joined([attention.o], dtype, share),
        norm_of(other.layer_norm, dtype),
        joined([to_source.q], dtype, share),
        joined([to_source.k, to_source.v], dtype, share),
        joined([to_source.o], dtype, share),
        norm_of(last.layer_norm, dtype),
        _mlp(mlp, dtype, share),
    )


def _mlp(mlp: Any, dtype: torch.dtype, share: bool) -> Function:
    """Of T5 (one projection) or of T5 1.1 (gated)."""
    act, out = mlp.act, joined([mlp.wo], dtype, share)
    names = {name for name, _ in mlp.named_children()} - {"dropout", "act", "wo"}
    if names == {"wi"}:
        inner = joined([mlp.wi], dtype, share)
        return lambda inputs: out(act(inner(inputs)))
    if names != {"wi_0", "wi_1"}:
        raise UnlikeError
    both = joined([mlp.wi_0, mlp.wi_1], dtype, share)

    def gated(inputs: Tensor) -> Tensor:
        gate, up = both(inputs).chunk(2, dim=-1)
        return out(act(gate) * up)

    return gated
