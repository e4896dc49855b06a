"""Encoders on the meta device, whole or cut down to some of their layers: every module and shape,
no values, next to no memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers import initialization as hf_initialization

from tsarch.errors import UserError
from tsarch.models.weight_files import some

_NOT_OF_LAYERS = ("architectures", "pos_att_type", "languages", "_tokens", "_id", "_ids")
"""Ends of names of lists that have nothing to do with layers."""


class HollowEmbedding(nn.Module):
    """Stands where the backbone's table was: no parameters, and calling it is a bug.

    But for padding: Longformer pads texts to whole windows by itself, and masks what it added.
    """

    def __init__(self, embedding_dim: int, padding: int | None = None) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self._padding = padding
        # A buffer, since it has the dtype and device of the model.
        self._nothing: Tensor
        self.register_buffer("_nothing", torch.zeros(1), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Zeros for padding; fails for all else: backbones here take `inputs_embeds`."""
        if self._padding is None or bool((input_ids != self._padding).any()):
            raise NotImplementedError(
                "it looks tokens up by itself; the table is tied, outside of it"
            )
        return self._nothing.expand(*input_ids.shape, self.embedding_dim)


class NoPooler(nn.Module):
    """Stands where the backbone's pooler was, whose result no task here uses."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        """The first token's hidden states, as they are."""
        return hidden[:, 0]


@dataclass(frozen=True)
class Skeleton:
    """An encoder to be filled, and where its values come from."""

    model: PreTrainedModel
    """The encoder, on the meta device, with its table and without a pooler."""
    source: PreTrainedModel
    """The encoder whose names the files have and whose initialisation counts: `model` itself, or
    the one that `layers` are of (then on the meta device for good)."""
    layers: Sequence[int] | None
    """Layers of `source` that `model` is made of, in the given order; None: `model` is `source`."""
    stacks: tuple[str, ...] = ()
    """Names of the lists of layers (XLM has one of each part); empty if `layers` is None."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Name in `model` → name in `source`, where they differ for another reason than `layers`."""
    has_table: bool = True
    """Whether `model` has a table: output heads have none."""

    def origin(self, name: str) -> str:
        """Name in `source` of a module, parameter or buffer of `model`."""
        prefix = next((f"{s}." for s in self.stacks if name.startswith(f"{s}.")), None)
        if self.layers is None or prefix is None:
            return self.renamed.get(name, name)
        place, dot, rest = name.removeprefix(prefix).partition(".")
        return f"{prefix}{self.layers[int(place)]}{dot}{rest}"

    @property
    def table(self) -> str:
        """Name of the embedding table; empty if there is none."""
        if not self.has_table:
            return ""
        embedding = table_of(self.model)
        owner = next(name for name, module in self.model.named_modules() if module is embedding)
        return f"{owner}.weight"


def make_skeleton(config: PretrainedConfig, layers: Sequence[int] | None) -> Skeleton:
    """The skeleton of `config`'s encoder, or of a smaller one of some of its layers.

    Raises:
        UserError: it reads no tokens, or layers can't be chosen, or not in this way.
    """
    source = _encoder(config)
    if not isinstance(getattr(table_of(source), "weight", None), Tensor):
        what = "has no table of tokens."
        if source.config.is_encoder_decoder:
            what = "has no table that encoder and decoder share."
        raise UserError.single(type(source).__name__, what, "Take a model that reads texts.")
    if layers is None:
        return Skeleton(source, source, None, ())
    smaller = copy.deepcopy(config)
    shrink_config(smaller, layers)
    stacks = tuple(name for name, _ in layer_stacks(source))
    skeleton = Skeleton(_encoder(smaller), source, layers, stacks)
    _check_layers(skeleton)
    return skeleton


@contextmanager
def without_memory() -> Iterator[None]:
    """Models of transformers are made on the meta device, nothing tied."""
    with (
        torch.device("meta"),
        hf_initialization.no_tie_weights(),
        hf_initialization.meta_device_safe_creation_ops(),
    ):
        yield


def _encoder(config: PretrainedConfig) -> PreTrainedModel:
    """As `from_pretrained` does it, without the pooler, which no task here uses."""
    with without_memory():
        encoder: PreTrainedModel = AutoModel.from_config(
            copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False
        )
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = NoPooler()  # some architectures call it whether it is there or not
    if encoder.config.is_encoder_decoder:
        width = encoder.get_input_embeddings().weight.shape[1]
        for side in (encoder.encoder, encoder.decoder):  # both read the one shared table
            side.embed_tokens = HollowEmbedding(width, getattr(config, "pad_token_id", None))
    return encoder


def table_of(model: PreTrainedModel) -> Any:
    """The module with the table; Marian's own answer is the encoder's, which is another one."""
    found = model.get_input_embeddings()
    return getattr(model, "shared", found) if isinstance(found, HollowEmbedding) else found


def shrink_config(config: PretrainedConfig, layers: Sequence[int]) -> None:
    """Make `config` one of an encoder with only `layers` of its layers."""
    cut_lists(config, layers)
    config.num_hidden_layers = len(layers)


def cut_lists(config: PretrainedConfig, layers: Sequence[int]) -> None:
    """Cut what a config has for each of its layers, and number anew what it has for some."""
    number = int(config.num_hidden_layers)
    for name, values in list(vars(config).items()):
        if not isinstance(values, list | tuple) or name.endswith(_NOT_OF_LAYERS):
            continue
        if _are_numbers_of_layers(name, values, number):
            setattr(config, name, [place for place, i in enumerate(layers) if i in values])
        elif len(values) == number:
            setattr(config, name, [values[i] for i in layers])
    if hasattr(config, "attention_types"):  # GPT-Neo: what `attention_layers` is made from
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]


def _are_numbers_of_layers(name: str, values: Sequence[Any], number: int) -> bool:
    """Whether a list names layers (`mlp_only_layers`), rather than having a value for each."""
    if "layer" not in name or not all(type(v) is int and 0 <= v < number for v in values):
        return False
    distinct = len(set(values)) == len(values)
    return distinct and (len(values) != number or number > 2)  # [0, 1] of two are flags


def layer_stacks(model: PreTrainedModel) -> list[tuple[str, nn.ModuleList]]:
    """(name, list) of the lists of a model's transformer layers: one, or one of each part.

    Raises:
        UserError: the architecture keeps its layers in another way (ALBERT shares them).
    """
    wanted = model.config.num_hidden_layers
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) == wanted and not inside:
            found.append((name, module))
    if found:
        return found
    raise UserError.single(
        type(model).__name__,
        f"has no list of {wanted} layers to choose from.",
        "Use `student.model` or `student.config`, and `freeze: none` or `all_but_head`.",
    )


def _check_layers(skeleton: Skeleton) -> None:
    """Every parameter of the smaller encoder must be one of the larger, and the other way round
    in the chosen layers (ModernBERT's first layer lacks a norm that the others have)."""
    wanted = {skeleton.origin(name) for name in skeleton.model.state_dict()}
    there = set(skeleton.source.state_dict())
    assert skeleton.layers is not None
    chosen = tuple(f"{stack}.{i}." for stack in skeleton.stacks for i in skeleton.layers)
    unlike = (wanted - there) | {n for n in there if n.startswith(chosen) and n not in wanted}
    if unlike:
        raise UserError.single(
            "student.layers",
            f"{list(skeleton.layers)} can't make a {type(skeleton.model).__name__}: a layer has "
            f"other parts in its new place ({some(unlike)}).",
            "Keep layer 0 first, or use `student.model`.",
        )
