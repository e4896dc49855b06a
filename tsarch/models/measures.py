"""Sizes of an architecture and what it multiplies embeddings by, measured on the architecture
itself: configs name such numbers in many ways, or not at all."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from tsarch.errors import UserError
from tsarch.models.skeleton import without_memory


@dataclass(frozen=True)
class Measures:
    """Of a model that takes `inputs_embeds`."""

    vocabulary: int
    """Rows of its table."""
    embedding_width: int
    """Width of its table."""
    hidden_width: int
    """Width of its hidden states."""
    embedding_scale: float = 1.0
    """What embeddings are multiplied by before they are given to it."""
    source_scale: float = 1.0
    """The same of a sequence-to-sequence model's encoder."""


_USUAL_HEADS = 12
_KNOWN: dict[tuple[type[PretrainedConfig], str], Measures] = {}
"""By config: a pass without values takes a tenth of a second."""


def measure(config: PretrainedConfig) -> Measures:
    """Measure the encoder of `config`, or the encoder and decoder.

    Raises:
        UserError: it treats embeddings in a way of its own.
        Exception: transformers can't build it.
    """
    key = type(config), config.to_json_string(use_diff=False)
    if key not in _KNOWN:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            _KNOWN[key] = _measured(config)
    return _KNOWN[key]


def _measured(config: PretrainedConfig) -> Measures:
    with without_memory():
        model = AutoModel.from_config(
            copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False
        )
    embedding = model.get_input_embeddings()
    if not isinstance(getattr(embedding, "weight", None), Tensor):
        hidden_width = int(config.hidden_size)  # that it reads no tokens is told elsewhere
        return Measures(int(config.vocab_size), hidden_width, hidden_width)
    vocabulary, width = map(int, embedding.weight.shape)
    hidden_width = _hidden_width(model, width)
    if config.is_encoder_decoder:
        scales = [
            _scale(side, side.get_input_embeddings()) for side in (model.decoder, model.encoder)
        ]
        return Measures(vocabulary, width, hidden_width, *scales)
    return Measures(vocabulary, width, hidden_width, _scale(_reader(model, embedding), embedding))


def _hidden_width(model: PreTrainedModel, width: int) -> int:
    """From a pass without values; where an architecture can't do that, as the config says."""
    given: dict[str, Tensor] = {"inputs_embeds": torch.empty(1, 2, width, device="meta")}
    if model.config.is_encoder_decoder:
        return int(model.config.hidden_size)
    try:
        with torch.no_grad():
            return int(model(**given).last_hidden_state.shape[-1])
    except Exception:  # whatever an architecture raises that computes with values
        return int(model.config.hidden_size)


def _reader(model: PreTrainedModel, embedding: nn.Module) -> Any:
    """The module that holds the table."""
    for module in model.modules():
        if any(child is embedding for child in module.children()):
            return module
    return model


def _scale(reader: Any, embedding: nn.Module) -> float:
    """What tokens' rows are multiplied by that `inputs_embeds` aren't."""
    own = getattr(embedding, "embed_scale", None)
    if isinstance(own, Tensor):
        own = _of_embedding(reader, embedding)
    scale = float(own or 1.0)
    factors = {
        value
        for name, value in vars(reader).items()
        if "embed" in name and isinstance(value, float) and value != 1.0
    }
    return scale if scale != 1.0 or not factors else _of_reader(reader, factors)


def _of_embedding(reader: Any, embedding: nn.Module) -> float:
    """By the embedding's own `forward`, of a row of ones."""
    probe = copy.deepcopy(embedding).to_empty(device="cpu")
    initialise = getattr(reader, "_init_weights", None)
    with torch.no_grad():
        if initialise is not None:
            initialise(probe)
        assert isinstance(probe.weight, Tensor)
        probe.weight.fill_(1.0)
        return float(probe(torch.zeros(1, 1, dtype=torch.long)).flatten()[0])


class _StoppedError(Exception):
    """The first layer was reached."""


class _Stop(nn.Module):
    """Stands where a layer was, and ends the pass with what it is given."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        """Always raises."""
        raise _StoppedError(hidden)


def _of_reader(reader: Any, factors: set[float]) -> float:
    """Whether `reader` multiplies rows that it looks up itself by one of its factors, but not those
    that it is given (Marian's encoder, Falcon-H1), or both alike (Marian's decoder, Granite)."""
    probe = copy.deepcopy(reader).eval()
    width = int(probe.get_input_embeddings().weight.shape[1])
    for name, child in list(probe.named_children()):
        if isinstance(child, nn.ModuleList):
            setattr(probe, name, nn.ModuleList([_Stop() for _ in child]))
    probe.set_input_embeddings(nn.Embedding(8, width))
    for module in probe.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if any(tensor.is_meta for tensor in own):
            module.to_empty(device="cpu", recurse=False)
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter)
            for buffer in module.buffers(recurse=False):
                buffer.zero_()
    ids = torch.tensor([[5, 6]])
    rows = probe.get_input_embeddings()(ids)
    wanted = _first_input(probe, input_ids=ids)
    for scale in (1.0, *factors):
        if torch.equal(wanted, _first_input(probe, inputs_embeds=rows * scale)):
            return scale
    raise UserError.single(
        type(reader).__name__,
        "treats tokens in a way that can't be followed outside of it.",
        "Take another architecture.",
    )


def _first_input(probe: Any, **given: Tensor) -> Tensor:
    """What the first layer is given."""
    try:
        with torch.no_grad():
            probe(**given)
    except _StoppedError as stopped:
        hidden: Tensor = stopped.args[0]
        return hidden
    raise AssertionError("no layer was reached")


def heads_of(config: PretrainedConfig) -> tuple[int, int]:
    """(heads, heads of keys and values) of an architecture's attention."""
    heads = int(config.num_attention_heads)
    kept = getattr(config, "num_key_value_heads", None)
    return heads, heads if kept is None else int(kept)


def head_shape(config: PretrainedConfig) -> tuple[int, int]:
    """(heads, width of a head), where an architecture doesn't say as is usual: for estimates."""
    heads = int(getattr(config, "num_attention_heads", None) or _USUAL_HEADS)
    return heads, int(getattr(config, "head_dim", None) or max(config.hidden_size // heads, 1))
