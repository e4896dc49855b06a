"""What a backbone computes inside: outputs of layers; queries, keys, values of the last attention.

Layers are watched by hooks. Attention is watched where transformers looks it up by name, so that
every architecture which does so shows it, whatever its modules are called. Nothing is recorded
outside of `watched`: answers are read as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tsarch.errors import UserError
from tsarch.models.skeleton import layer_stacks, without_memory

Part = Literal["queries", "keys", "values"]
PARTS: tuple[Part, ...] = ("queries", "keys", "values")
_SUFFIX = "_shown"
_WATCHER: ContextVar[InnerStates | None] = ContextVar("_WATCHER", default=None)


@dataclass(frozen=True)
class Shown:
    """What is wanted of a backbone's inside; the order is that of the results."""

    layers: tuple[int, ...] = ()
    """Layers whose outputs are."""
    parts: tuple[Part, ...] = ()
    """Parts of the last layer's attention that are, all heads side by side."""

    def __bool__(self) -> bool:
        return bool(self.layers or self.parts)


class InnerStates:
    """Records what is wanted of a backbone while it reads."""

    def __init__(self, backbone: PreTrainedModel, shown: Shown) -> None:
        self.shown = shown
        self._layers: dict[int, Tensor] = {}
        self._parts: dict[Part, Tensor] = {}
        for number in shown.layers:
            ((_, stack),) = layer_stacks(backbone)
            stack[number].register_forward_hook(partial(self._keep_layer, number))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Record what the backbone computes here."""
        self._layers, self._parts = {}, {}
        token = _WATCHER.set(self)
        try:
            yield
        finally:
            _WATCHER.reset(token)

    def beside(self, hidden: Tensor) -> Tensor:
        """(…, tokens, width) hidden states and, beside them, what was recorded with them: (…,
        tokens, width + …). Nothing of it stays here."""
        layers, parts = self._layers, self._parts
        self._layers, self._parts = {}, {}
        found = [layers[number] for number in self.shown.layers]
        found += [parts[name] for name in self.shown.parts]
        return torch.cat([hidden, *(own.to(hidden.dtype) for own in found)], dim=-1)

    def _keep_layer(self, number: int, module: nn.Module, inputs: Any, output: Any) -> None:
        if _WATCHER.get() is self:
            self._layers[number] = output if isinstance(output, Tensor) else output[0]

    def keep_attention(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """(batch, heads, tokens, width) of one layer; those of the last one stay."""
        given = {"queries": query, "keys": key, "values": value}
        for name in self.shown.parts:
            own = given[name]
            if name == "keys" and own.shape[1] != query.shape[1]:  # as many as they are asked by
                own = own.repeat_interleave(query.shape[1] // own.shape[1], dim=1)
            self._parts[name] = own.transpose(1, 2).flatten(2)


@contextmanager
def watching(inner: InnerStates | None) -> Iterator[None]:
    """Record for `inner`, if there is one."""
    if inner is None:
        yield
        return
    with inner.watched():
        yield


def show_attention(model: PreTrainedModel) -> None:
    """Have a model's attention, whatever it is by now, show what it is given while it is watched.
    The attention functions of checkpointed layers run again later, which nobody watches.

    Raises:
        UserError: the architecture doesn't look its attention up by name.
    """
    name = model.config._attn_implementation
    if name.endswith(_SUFFIX):
        return
    if name not in ALL_ATTENTION_FUNCTIONS:
        raise UserError.single(type(model).__name__, "computes attention in a way of its own.")
    base = ALL_ATTENTION_FUNCTIONS[name]
    ALL_ATTENTION_FUNCTIONS.register(name + _SUFFIX, partial(_attend, base))
    ALL_MASK_ATTENTION_FUNCTIONS.register(name + _SUFFIX, ALL_MASK_ATTENTION_FUNCTIONS[name])
    model.set_attn_implementation(name + _SUFFIX)


def _attend(
    base: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *arguments: Any,
    **options: Any,
) -> Any:
    """An attention function as transformers calls it."""
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher.keep_attention(query, key, value)
    return base(module, query, key, value, *arguments, **options)


def shown_widths(config: PretrainedConfig, shown: Shown) -> tuple[int, ...]:
    """Numbers a position of each thing in `shown`, found out without values.

    Raises:
        Exception: the architecture doesn't show it (each has errors of its own).
    """
    from transformers import AutoModel

    with without_memory():
        model: PreTrainedModel = AutoModel.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    if shown.parts:
        show_attention(model)
    inner = InnerStates(model, shown)
    width = model.get_input_embeddings().weight.shape[1]
    with inner.watched(), torch.device("meta"):
        model(inputs_embeds=torch.empty(1, 2, width))
    found = [inner._layers[number] for number in shown.layers]
    found += [inner._parts[name] for name in shown.parts]
    return tuple(own.shape[-1] for own in found)
