"""A stage's architecture with few layers and random weights, to try out how it reads."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from tsarch.blueprint import StageBlueprint
from tsarch.errors import UserError
from tsarch.models.backbone import Backbone, build_backbone
from tsarch.models.construction import num_elements
from tsarch.models.dropout import set_dropout
from tsarch.models.skeleton import layer_stacks, make_skeleton
from tsarch.seeding import torch_seed

_MOST_WHOLE = 50_000_000
"""Parameters up to which all layers are taken."""
_MOST = 400_000_000
"""Parameters up to which a model is built at all: 1.6 GB, some seconds."""


def small_backbone(own: StageBlueprint) -> Backbone | None:
    """A stage's backbone without dropout and table; None: even few layers of it are too large."""
    config, layers, size = _small(own)
    if size > _MOST:
        return None
    seed_of = partial(torch_seed, 0)
    backbone = build_backbone(config, None, seed_of, layers, with_table=False)
    _disturb(backbone.model)
    backbone.model.requires_grad_(False)
    return backbone


def is_too_large(own: StageBlueprint) -> bool:
    """Whether a stage has no `small_backbone`."""
    return _small(own)[2] > _MOST


def _small(own: StageBlueprint) -> tuple[PretrainedConfig, Sequence[int] | None, int]:
    """(config, layers, parameters) of the small backbone; nothing is built but its outline."""
    config = copy.deepcopy(own.architecture.config)
    set_dropout(config, 0.0, 0.0)
    layers: Sequence[int] | None = own.architecture.layers
    model = make_skeleton(config, layers).model
    if _num_parameters(model) > _MOST_WHOLE:
        try:
            stack = list(layer_stacks(model)[0][1])
        except UserError:  # ALBERT shares its layers
            return config, layers, _num_parameters(model)
        few = _few(stack, getattr(model.config, "layer_types", None))
        layers = few if layers is None else [layers[layer] for layer in few]
        model = make_skeleton(config, layers).model
    return config, layers, _num_parameters(model)


def num_parameters(backbone: Backbone) -> int:
    """Of all layers."""
    return num_elements(backbone.model)


def _num_parameters(model: PreTrainedModel) -> int:
    embeddings: nn.Module = model.get_input_embeddings()
    return num_elements(model) - num_elements(embeddings)


def _few(stack: Sequence[nn.Module], types: Sequence[str] | None) -> list[int]:
    """The first two layers, and the first of every other kind."""
    seen: set[object] = set()
    chosen = []
    for number, layer in enumerate(stack):
        kind = (
            tuple(type(module) for module in layer.modules()),
            None if types is None else types[number],
        )
        if number < 2 or kind not in seen:
            chosen.append(number)
        seen.add(kind)
    return chosen


def _disturb(model: nn.Module) -> None:
    """Add noise to all parameters: many start at 0 or 1, and would hide what they do."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            std = 0.3 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.02
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=std)
