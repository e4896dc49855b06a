"""Hugging Face encoders without their embedding table: the table is tied and lives elsewhere."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from tsarch.models.construction import WHOLE, Construction
from tsarch.models.dropout import set_dropout
from tsarch.models.loading import check_weights, load_weights
from tsarch.models.measures import Measures, measure
from tsarch.models.random_weights import SeedOf, claim, fill_table, fill_with_random
from tsarch.models.skeleton import HollowEmbedding, layer_stacks, make_skeleton, table_of
from tsarch.models.weight_files import open_checkpoint

_MOST = {"layer": 1000, "expert": 20_000, "block": 1000, "label": 100_000}
"""Part of a number's name → the most that it may be, if it counts modules."""
_SIZES = {"size", "dim", "width", "length", "tokens"}
"""Parts of names of numbers that count something else (`shared_expert_intermediate_size`)."""


@dataclass
class Backbone:
    """A model that takes `inputs_embeds`, and the table that was cut out of it."""

    model: PreTrainedModel
    embedding_width: int
    """Width of `inputs_embeds`."""
    table: Tensor | None
    """(vocabulary, embedding_width) fp32; None where it isn't wanted."""
    hidden_width: int
    """Width of the hidden states."""
    embedding_scale: float = 1.0
    """What the architecture multiplies embeddings by (BART's `scale_embedding`)."""
    source_scale: float = 1.0
    """The same of a sequence-to-sequence model's encoder."""

    @property
    def num_types(self) -> int:
        """Types of tokens that the model tells apart (`token_type_ids`); 0: it knows none."""
        takes = "token_type_ids" in inspect.signature(self.model.forward).parameters
        return int(getattr(self.model.config, "type_vocab_size", 0) or 0) if takes else 0


def backbone_config(
    model: str | None, config: dict[str, Any] | None, dropout: float, attention_dropout: float
) -> PretrainedConfig:
    """Hugging Face config of a hub name or folder, or from a mapping with `model_type`.

    Raises:
        Exception: the config can't be read or is no valid one (each architecture has errors of its
            own).
    """
    if model is not None:
        result = AutoConfig.from_pretrained(model, trust_remote_code=False)
    else:
        assert config is not None
        values = {name: value for name, value in config.items() if not name.startswith("tsarch_")}
        if "model_type" not in values:
            raise ValueError("it has no model_type")
        _check_counts(values)
        result = AutoConfig.for_model(values.pop("model_type"), **values)
    _check_counts(result.to_dict())
    _check_sizes(result)
    set_dropout(result, dropout, attention_dropout)
    return cast(PretrainedConfig, result)


def _check_counts(values: Mapping[str, Any]) -> None:
    """Refuse numbers of modules that no machine could make in an hour."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            _check_counts(value)
        is_size = not _SIZES.isdisjoint(str(name).split("_"))
        most = next(
            (most for word, most in _MOST.items() if word in str(name) and not is_size), None
        )
        if most is not None and isinstance(value, int) and value > most:
            raise ValueError(f"{name} is more than {most:,}")


def _check_sizes(config: PretrainedConfig) -> None:
    """Refuse an architecture without the sizes that every encoder here has."""
    for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
        value = getattr(config, name, None)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {reprlib.repr(value)}, not a whole number above 0")


def build_backbone(
    config: PretrainedConfig,
    model: str | None,
    seed_of: SeedOf,
    layers: Sequence[int] | None = None,
    construction: Construction = WHOLE,
    with_table: bool = True,
    change: Callable[[PreTrainedModel], None] | None = None,
) -> Backbone:
    """Build the encoder of `config`, or a smaller one of some of its `layers`.

    Weights are fp32: pretrained ones of `model` (folder or hub name), or random ones. All ranks
    of a stage call it; no more than a few parameters are whole at one time, apart from what
    `construction` keeps whole. The table is only read `with_table`. Random ones are drawn for what
    `change` makes of the model.

    Raises:
        UserError: `model` has no fitting safetensors weights, or `layers` can't be chosen.
    """
    skeleton = make_skeleton(config, layers)
    encoder = skeleton.model
    if change is not None:
        change(encoder)
    if model is not None:
        checkpoint = open_checkpoint(model)
        found = check_weights(skeleton, checkpoint)
        claim(encoder, {n for n in encoder.state_dict() if skeleton.origin(n) in found})
    if not construction.draws:
        claim(encoder, {name for name, _ in encoder.named_parameters()})
    fill_with_random(skeleton, seed_of, construction)
    if model is not None:
        load_weights(skeleton, checkpoint, construction, with_table)
    elif with_table:
        fill_table(skeleton, seed_of)
    return cut_out_table(encoder, measure(config))


def cut_out_table(encoder: PreTrainedModel, measures: Measures) -> Backbone:
    """Take the table out of an encoder; without values (meta device) only its width is known."""
    table = table_of(encoder).weight.detach()
    encoder.set_input_embeddings(
        HollowEmbedding(table.shape[1], getattr(encoder.config, "pad_token_id", None))
    )
    encoder.config.use_cache = False  # where keys and values are kept, a cache is passed
    return Backbone(
        encoder,
        table.shape[1],
        None if table.is_meta else table,
        measures.hidden_width,
        measures.embedding_scale,
        measures.source_scale,
    )


def freeze_backbone(model: PreTrainedModel, freeze: str, top_k: int) -> None:
    """Stop gradients of the backbone's parameters."""
    if freeze == "none":
        return
    model.requires_grad_(False)
    if freeze == "all_but_top_k":
        for _, stack in layer_stacks(model):
            for layer in list(stack)[max(len(stack) - top_k, 0) :]:
                layer.requires_grad_(True)


def type_option(types: Tensor | None, num_types: int) -> dict[str, Tensor]:
    """How a model that tells `num_types` types of tokens apart is told them."""
    if types is None or num_types < 2:
        return {}
    return {"token_type_ids": types.clamp(max=num_types - 1)}
