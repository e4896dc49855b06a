"""Attention as two plain matrix products around a softmax, for short inputs on CPUs.

torch's fused attention for CPUs never stores the scores, which pays for long inputs. For short ones
it is slow, in bf16 above all: its backward pass takes several times as long as the products do. How
long is short depends on the machine and the precision (`planning/attention_trial.py` measures it).

Registered with transformers (`AttentionInterface`), so that every architecture which looks its
attention up there has it; all that isn't short goes on to transformers' own `sdpa`.
"""

from __future__ import annotations

import inspect
import re
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tsarch.models.fast_dropout import kept_places, only_kept

_FUSED = "sdpa"
_NOT_HERE = ("cache", "softcap")
"""Options that change what `sdpa` does, or that it refuses. It heeds those below, and no others:
windows that slide are in the mask."""
_ASKS_FOR_FUSED = re.compile(r"_attn_implementation\s*(==|in)[^\n]*[\"']sdpa[\"']")
"""Code of an architecture that has a way of its own for `sdpa`."""


def attend_by_products(model: PreTrainedModel, most_keys: int) -> bool:
    """Have a model's fused attention done as products wherever there are at most `most_keys` keys
    (0: nowhere); returns whether its architecture can do that."""
    if most_keys < 1 or not _can_change(model):
        return False
    name = f"products_up_to_{most_keys}"
    AttentionInterface.register(name, partial(_attend, most_keys))
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)
    return True


def _can_change(model: PreTrainedModel) -> bool:
    if model.config._attn_implementation != _FUSED or not model._can_set_attn_implementation():
        return False
    return not _ASKS_FOR_FUSED.search(inspect.getsource(sys.modules[type(model).__module__]))


def _attend(
    most_keys: int,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers asks of an attention: (batch, heads, tokens, width) queries, (batch,
    key_heads, keys, width) keys and values, a mask that broadcasts to (batch, heads, tokens, keys),
    True where a key may be seen or else added to the scores → (batch, tokens, heads, width)."""
    is_plain = len(query) == len(key) and not any(options.get(n) is not None for n in _NOT_HERE)
    if query.device.type != "cpu" or key.shape[2] > most_keys or not is_plain:
        fused: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return fused
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (own.repeat_interleave(groups, dim=1) for own in (key, value))
    is_causal = options.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    if is_causal and attention_mask is None and query.shape[2] > 1:
        # As transformers has it: of more keys than queries the first ones are those of the queries.
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    found = products(
        query,
        key,
        value,
        attention_mask,
        options.get("position_bias"),
        options.get("scaling"),
        options.get("dropout", 0.0),
    )
    return found.transpose(1, 2).contiguous(), None


def products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    position_bias: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """(batch, heads, tokens, width) queries, (batch, heads, keys, width) keys and values → (batch,
    heads, tokens, width).

    Args:
        mask: broadcasts to (batch, heads, tokens, keys): True where a key may be seen, or numbers
            that are added to the scores.
        position_bias: as broad, added too.
        scaling: of the scores; None: width^-0.5.
        dropout: of the weights.
    """
    bias = _added(mask, position_bias, query.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found: Tensor = _Products.apply(query, key, value, bias, scale, dropout)  # type: ignore[no-untyped-call]
    return found


def _added(mask: Tensor | None, position_bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores. Hidden keys get the lowest number there is, so that a query that
    sees none has a finite result."""
    if mask is None or mask.dtype != torch.bool:
        given = [own.to(dtype) for own in (mask, position_bias) if own is not None]
        return sum(given[1:], given[0]) if given else None
    shown = torch.zeros((), dtype=dtype) if position_bias is None else position_bias.to(dtype)
    return torch.where(mask, shown, torch.finfo(dtype).min)


class _Products(torch.autograd.Function):
    """softmax(q·kᵀ·scale + bias)·v. The softmax is computed in fp32 in any dtype.

    Written out with its backward pass, since autograd would keep the scores beside the
    probabilities, and copy more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scale: float,
        dropout: float,
    ) -> Tensor:
        heads = query.shape[:2]
        q, k, v = (own.reshape(-1, *own.shape[2:]) for own in (query, key, value))
        scores = _scaled_product(q, k.transpose(1, 2), scale)
        if bias is not None:
            scores.view(*heads, *scores.shape[1:]).add_(bias)
        weights = torch.softmax(scores, dim=-1)
        kept = None
        if dropout > 0.0:
            kept, ctx.kept_scale = kept_places(weights.shape, dropout)
        ctx.scale, ctx.heads = scale, heads
        ctx.bias_shape = bias.shape if bias is not None and bias.requires_grad else None
        ctx.save_for_backward(q, k, v, weights, kept)
        dropped = weights if kept is None else only_kept(weights, kept, ctx.kept_scale)
        return torch.bmm(dropped, v).view(*heads, *query.shape[2:3], *v.shape[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, weights, kept = ctx.saved_tensors
        grad = grads[0].reshape(-1, *grads[0].shape[2:])
        dropped = weights if kept is None else only_kept(weights, kept, ctx.kept_scale)
        grad_v = torch.bmm(dropped.transpose(1, 2), grad)
        grad_w = torch.bmm(grad, v.transpose(1, 2))
        if kept is not None:
            grad_w = only_kept(grad_w, kept, ctx.kept_scale)
        grad_s = torch._softmax_backward_data(grad_w, weights, -1, weights.dtype)
        grad_q = _scaled_product(grad_s, k, ctx.scale)
        grad_k = _scaled_product(grad_s.transpose(1, 2), q, ctx.scale)
        grad_bias = None
        if ctx.bias_shape is not None:
            grad_bias = grad_s.view(*ctx.heads, *grad_s.shape[1:]).sum_to_size(ctx.bias_shape)
        shaped = [own.view(*ctx.heads, *own.shape[1:]) for own in (grad_q, grad_k, grad_v)]
        return *shaped, grad_bias, None, None


def _scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """(n, i, j), (n, j, k) → (n, i, k) a·b·scale, scaled before it is rounded to the dtype."""
    room = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    return torch.baddbmm(room, a, b, beta=0, alpha=scale)
