"""Layers of Llama's kin (Mistral, Qwen, SmolLM and others) for reading few tokens at a time.

What is done is what their own classes do (norm, attention with rotary positions, norm, gated
feed-forward part), with one product for queries, keys and values and one for gate and up, on slots
that stay where they are (`StaticValues`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tsarch.models.fused import Function, UnlikeError, check_alike, joined, norm_of
from tsarch.models.static_values import Span, StaticValues, ValueSizes
from tsarch.models.taps import with_taps

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_STATE_NORM = "hidden_norm"
"""Of a drafter's first layer."""
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_MODEL = {"embed_tokens", "layers", "norm", "rotary_emb"}
_FIXED_ROTARY = {"default", "linear", "llama3", "yarn"}
"""Kinds of rotary positions whose angles don't depend on how long a text is."""


@dataclass(frozen=True)
class _Layer:
    before_attention: Function
    before_state: Function | None
    """Of a drafter's first layer, whose inputs are a token and a state side by side."""
    queries_keys_values: Function
    norms: tuple[Function, Function] | None
    """Of each head's queries and keys."""
    output: Function
    before_mlp: Function
    gate_up: Function
    activation: Callable[[Tensor], Tensor]
    down: Function


class CausalStack:
    """All layers of such a model.

    Args:
        share: let the model's own weights be parts of the joined ones.

    Raises:
        UnlikeError: it is made in another way.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, share: bool) -> None:
        if {name for name, _ in model.named_children()} != _MODEL:
            raise UnlikeError
        parts: Any = model
        config = parts.config
        layers = list(parts.layers)
        _check_children(layers[0])
        self.is_fed = hasattr(layers[0], _STATE_NORM)
        """Whether its inputs are states beside tokens (`FedLayer`)."""
        check_alike(layers[self.is_fed :] or layers)
        attention = layers[0].self_attn
        rope = getattr(parts.rotary_emb, "rope_type", None)
        if rope not in _FIXED_ROTARY or not isinstance(getattr(attention, "scaling", None), float):
            raise UnlikeError
        width = int(attention.head_dim)
        self._num_heads = attention.q_proj.out_features // width
        num_kept = attention.k_proj.out_features // width
        self.sizes = ValueSizes(len(layers), num_kept, width, self._num_heads // num_kept)
        self.dtype = dtype
        self.longest = _window(config)
        self._scale = float(attention.scaling)
        self._rotary = parts.rotary_emb
        self._norm = norm_of(parts.norm, dtype)
        self._layers = [_functions(layer, dtype, share) for layer in layers]
        self.taps: tuple[int, ...] = ()
        """After so many layers each, states go with the last ones (`with_taps`)."""

    def read(self, embeds: Tensor, values: StaticValues, span: Span) -> Tensor:
        """(texts, tokens, width) embeddings of a span → hidden states."""
        hidden = embeds.to(self.dtype)
        cosines, sines = self._angles(hidden, span.places)
        heads, kept, width = self._num_heads, self.sizes.num_heads, self.sizes.head_width
        tapped = []
        for number, layer in enumerate(self._layers):
            hidden, normed = _entered(layer, hidden)
            found = layer.queries_keys_values(normed)
            found = found.view(*hidden.shape[:2], heads + 2 * kept, width)
            turning, own = found[:, :, : heads + kept], found[:, :, heads + kept :]
            if layer.norms is not None:
                query, key = layer.norms
                parts = [query(turning[:, :, :heads]), key(turning[:, :, heads:])]
                turning = torch.cat(parts, dim=2)
            turning = torch.addcmul(turning * cosines, turning.roll(width // 2, -1), sines)
            queries, keys = turning[:, :, :heads], turning[:, :, heads:]
            seen = values.attend(number, queries, keys, own, span, self._scale)
            hidden = hidden + layer.output(seen)
            gate, up = layer.gate_up(layer.before_mlp(hidden)).chunk(2, dim=-1)
            hidden = hidden + layer.down(layer.activation(gate) * up)
            if number + 1 in self.taps:
                tapped.append(hidden)
        hidden = self._norm(hidden)
        return with_taps(tapped, hidden) if tapped else hidden

    def _angles(self, hidden: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """(texts, tokens, 1, head_width) cosines, and sines with the sign that a half that is
        turned to the other's place takes."""
        cosines, sines = self._rotary(hidden, position_ids=places)
        half = sines.shape[-1] // 2
        signed = torch.cat([-sines[..., :half], sines[..., half:]], dim=-1)
        return cosines.unsqueeze(2), signed.unsqueeze(2)


def _entered(layer: _Layer, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer adds to, and what its attention reads."""
    if layer.before_state is None:
        return hidden, layer.before_attention(hidden)
    token, state = hidden.chunk(2, dim=-1)
    state = layer.before_state(state)
    return state, torch.cat([layer.before_attention(token), state], dim=-1)


def _check_children(layer: Any) -> None:
    """Raises:
    UnlikeError: a layer has other parts.
    """
    attention = {name for name, _ in layer.self_attn.named_children()}
    if (
        {name for name, _ in layer.named_children()} - {_STATE_NORM} != _LAYER
        or attention not in (_ATTENTION, _ATTENTION | {"q_norm", "k_norm"})
        or {name for name, _ in layer.mlp.named_children()} != _MLP
    ):
        raise UnlikeError


def _window(config: Any) -> int | None:
    """Tokens that any layer sees at least; None: all."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and set(kinds) == {"full_attention"}:
        return None
    if kinds is not None and not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise UnlikeError
    return None if window is None else int(window)


def _functions(layer: Any, dtype: torch.dtype, share: bool) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    norms = None
    if hasattr(attention, "q_norm"):
        norms = norm_of(attention.q_norm, dtype), norm_of(attention.k_norm, dtype)
    state_norm = getattr(layer, _STATE_NORM, None)
    return _Layer(
        norm_of(layer.input_layernorm, dtype),
        None if state_norm is None else norm_of(state_norm, dtype),
        joined([attention.q_proj, attention.k_proj, attention.v_proj], dtype, share),
        norms,
        joined([attention.o_proj], dtype, share),
        norm_of(layer.post_attention_layernorm, dtype),
        joined([mlp.gate_proj, mlp.up_proj], dtype, share),
        mlp.act_fn,
        joined([mlp.down_proj], dtype, share),
    )
