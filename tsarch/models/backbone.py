"""Hugging Face encoders without their embedding table: the table is tied and lives elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from tsarch.errors import UserError

_HIDDEN_DROPOUT = ("hidden_dropout_prob", "dropout", "hidden_dropout", "mlp_dropout")
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")


class HollowEmbedding(nn.Module):
    """Stands where the backbone's table was: no parameters, and calling it is a bug."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim

    def forward(self, input_ids: Tensor) -> Tensor:
        """Always fails: backbones here take `inputs_embeds`."""
        raise AssertionError("a backbone takes inputs_embeds; the table is tied, outside of it")


@dataclass
class Backbone:
    """An encoder that takes `inputs_embeds`, and the table that was cut out of it."""

    model: PreTrainedModel
    table: Tensor
    """(vocabulary, embedding_width) fp32."""

    @property
    def embedding_width(self) -> int:
        """Width of `inputs_embeds`."""
        return int(self.table.shape[1])

    @property
    def hidden_width(self) -> int:
        """Width of the hidden states."""
        return int(self.model.config.hidden_size)


def backbone_config(
    model: str | None, config: dict[str, Any] | None, dropout: float, attention_dropout: float
) -> PretrainedConfig:
    """Hugging Face config of a hub name or folder, or from a mapping with `model_type`.

    Raises:
        OSError, ValueError, KeyError: the config can't be read or is no valid one.
    """
    if model is not None:
        result = AutoConfig.from_pretrained(model)
    else:
        assert config is not None
        values = dict(config)
        result = AutoConfig.for_model(values.pop("model_type"), **values)
    set_dropout(result, dropout, attention_dropout)
    return cast(PretrainedConfig, result)


def set_dropout(config: PretrainedConfig, dropout: float, attention_dropout: float) -> None:
    """Set the dropout probabilities under whichever names the architecture has."""
    for names, value in ((_HIDDEN_DROPOUT, dropout), (_ATTENTION_DROPOUT, attention_dropout)):
        for name in names:
            if hasattr(config, name):
                setattr(config, name, value)


def build_backbone(config: PretrainedConfig, model: str | None) -> Backbone:
    """Build the encoder of `config`: pretrained weights of `model`, or random ones.

    Weights are fp32; the pooler, which no task here uses, is left out.
    """
    if model is None:
        return _cut_out_table(AutoModel.from_config(config, dtype=torch.float32))
    return _cut_out_table(AutoModel.from_pretrained(model, config=config, dtype=torch.float32))


def _cut_out_table(encoder: PreTrainedModel) -> Backbone:
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    table = encoder.get_input_embeddings().weight.detach().clone()
    encoder.set_input_embeddings(HollowEmbedding(table.shape[1]))
    return Backbone(encoder, table)


def select_layers(
    backbone: Backbone, layers: Sequence[int], dropout: float, attention_dropout: float
) -> Backbone:
    """A smaller encoder that starts as some layers of `backbone`, in the given order."""
    config = copy.deepcopy(backbone.model.config)
    shrink_config(config, layers)
    set_dropout(config, dropout, attention_dropout)
    smaller = build_backbone(config, None)
    parent, name, stack = layer_stack(backbone.model)
    _, _, chosen = layer_stack(smaller.model)
    setattr(parent, name, nn.ModuleList())
    smaller.model.load_state_dict(backbone.model.state_dict(), strict=False)
    setattr(parent, name, stack)
    for target, source in zip(chosen, layers, strict=True):
        target.load_state_dict(stack[source].state_dict())
    return Backbone(smaller.model, backbone.table)


def shrink_config(config: PretrainedConfig, layers: Sequence[int]) -> None:
    """Make `config` one of an encoder with only `layers` of its layers."""
    config.num_hidden_layers = len(layers)
    types = getattr(config, "layer_types", None)
    if types is not None:
        config.layer_types = [types[i] for i in layers]


def layer_stack(model: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList]:
    """(parent, attribute name, list) of the encoder's transformer layers.

    Raises:
        UserError: the architecture keeps its layers in another way (ALBERT shares them).
    """
    wanted = model.config.num_hidden_layers
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == wanted:
                return parent, name, child
    raise UserError.single(
        type(model).__name__,
        f"has no list of {wanted} layers to choose from.",
        "Use `student.model` or `student.config`, and `freeze: none` or `all_but_head`.",
    )


def freeze_backbone(model: PreTrainedModel, freeze: str, top_k: int) -> None:
    """Stop gradients of the backbone's parameters (design, section 1; article 3.2 step 3)."""
    if freeze == "none":
        return
    model.requires_grad_(False)
    if freeze == "all_but_top_k":
        _, _, stack = layer_stack(model)
        for layer in list(stack)[max(len(stack) - top_k, 0) :]:
            layer.requires_grad_(True)
