"""What transformers' own class computes from the same files: a stage's model is held against it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
)

from tsarch.models.skeleton import cut_lists, layer_stacks
from tsarch.records import IntArray

_NOISE = 0.1
"""Of random files: so that no bias, norm or scale that is left out goes unseen."""


@dataclass(frozen=True)
class Row:
    """What is read: a text, or a source and the start of its target."""

    token_ids: IntArray
    """(tokens,)."""
    start: int | None = None
    """Where the target starts, for sequence-to-sequence models."""

    @property
    def first(self) -> int:
        """The first token whose numbers are compared."""
        return self.start or 0

    @property
    def generated(self) -> int:
        """The token that is read by itself, after those before it."""
        return len(self.token_ids) - 1 if self.start is None else self.start + 1


@dataclass(frozen=True)
class Reference:
    """A model of transformers, without dropout."""

    model: PreTrainedModel
    has_head: bool
    """Whether it gives log-probabilities; otherwise hidden states."""

    @classmethod
    def load(cls, folder: str, config: PretrainedConfig, generative: bool) -> Reference:
        """From a folder or hub name, in fp32. Where the files lack the head of a generative model,
        the model without it."""
        options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
        if generative:
            model, found = auto_class(config, generative).from_pretrained(
                folder, trust_remote_code=False, output_loading_info=True, **options
            )
            if not found["missing_keys"]:
                return cls(_reading(model), True)
        return cls(
            _reading(AutoModel.from_pretrained(folder, trust_remote_code=False, **options)), False
        )

    @property
    def name(self) -> str:
        """Of the class."""
        return type(self.model).__name__

    def read(self, row: Row) -> Tensor:
        """(tokens, outputs) numbers of a row by itself, of the target alone if it has one."""
        tokens = torch.from_numpy(row.token_ids).unsqueeze(0)
        own = tokens[:, row.first :]
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if row.start is not None:
            source = tokens[:, : row.start]
            inputs = {"input_ids": source, "attention_mask": torch.ones_like(source)}
            inputs |= {"decoder_input_ids": own}
        with torch.inference_mode():
            output = self.model(**inputs)
        if self.has_head:
            logits: Tensor = output.logits
            return logits[0].float().log_softmax(-1)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    @contextmanager
    def only(self, layers: Sequence[int] | None) -> Iterator[None]:
        """With some of its layers in a row, each as it is in its own place; None: all."""
        if layers is None:
            yield
            return
        stacks = [stack for _, stack in layer_stacks(self.model)]
        if len(stacks) == 1 and list(layers) == sorted(layers):
            with _skipped(module for i, module in enumerate(stacks[0]) if i not in layers):
                yield
        else:
            with _cut(self.model, layers):
                yield


def _reading(model: PreTrainedModel) -> PreTrainedModel:
    """Without dropout, and without a cache, which places layers by their numbers."""
    model.config.use_cache = False
    return model.eval()


def auto_class(config: PretrainedConfig, generative: bool) -> Any:
    """transformers' class of models of this kind."""
    if not generative:
        return AutoModel
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def save_random(config: PretrainedConfig, generative: bool, folder: str) -> None:
    """Files of a model of `config` in which nothing is 0 or 1, as transformers writes them."""
    torch.manual_seed(0)
    model = auto_class(config, generative).from_config(
        copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False
    )
    with torch.no_grad():
        for parameter in model.parameters():
            noise = _NOISE if parameter.ndim < 2 else min(_NOISE, parameter.shape[-1] ** -0.5)
            parameter.add_(torch.randn_like(parameter) * noise)
        for name, buffer in model.named_buffers():
            if name in model.state_dict() and name.endswith("bias") and buffer.is_floating_point():
                buffer.add_(torch.randn_like(buffer) * _NOISE)
    model.save_pretrained(folder)


@contextmanager
def _skipped(modules: Iterator[nn.Module]) -> Iterator[None]:
    """With layers that hand on what they are given."""

    def skip(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return given if isinstance(output, Tensor) else (given, *output[1:])

    hooks = [module.register_forward_hook(skip, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _cut(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[None]:
    """With lists of `layers` alone: of several lists, or in another order."""
    found, config = layer_stacks(model), model.config
    whole, number = copy.copy(config.__dict__), config.num_hidden_layers
    counted = [(m, n) for m in model.modules() for n, v in vars(m).items()
               if n in ("n_layers", "num_layers", "num_hidden_layers") and v == number]  # fmt: skip
    for name, stack in found:
        model.set_submodule(name, nn.ModuleList(stack[i] for i in layers))
    for owner, name in counted:
        setattr(owner, name, len(layers))
    cut_lists(config, layers)  # not their number, for which a cache has room
    try:
        yield
    finally:
        config.__dict__.update(whole)
        for name, stack in found:
            model.set_submodule(name, stack)
        for owner, name in counted:
            setattr(owner, name, number)
