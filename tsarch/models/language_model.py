"""Language models of transformers without their backbone: what is left turns hidden states into
logits."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
)

from tsarch.errors import UserError
from tsarch.models.heads import projection
from tsarch.models.loading import file_names
from tsarch.models.skeleton import Skeleton, without_memory
from tsarch.models.weight_files import Checkpoint


class _Read(tuple[Tensor, ...]):
    """What a backbone gives: hidden states, and nothing of all else that may be asked for."""

    @property
    def last_hidden_state(self) -> Tensor:
        """(1, positions, width)."""
        return self[0]

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):  # DeepSpeed takes what has `_fields` for a named tuple
            raise AttributeError(name)


class _Passed(nn.Module):
    """Stands where a backbone was and gives back the embeddings that it is given."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.config = getattr(backbone, "config", None)
        for name, value in vars(backbone).items():
            if isinstance(value, bool | int | float | str) and name not in self.__dict__:
                setattr(self, name, value)
        self._inner = {name for name, child in backbone.named_children() if _has_layers(child)}

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_inner", ()):
            return self  # OPT's head calls the decoder in its backbone
        return super().__getattr__(name)

    def forward(self, *_: Any, **given: Any) -> _Read:
        """The states, whatever they are called."""
        names = ("decoder_inputs_embeds", "inputs_embeds")
        return _Read((next(given[n] for n in names if given.get(n) is not None),))


class _NoTable(nn.Module):
    """Stands where the table was. It has a weight, which is no parameter, for transformers to give
    starting values to."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.zeros(1, 1)


class TableProjection(nn.Module):
    """Stands where a projection was that is the table: (…, width) → (…, vocabulary)."""

    def __init__(self, width: int, table_width: int, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.linear = projection(width, table_width)
        self.bias = bias
        self.table: Tensor | None = None
        """(vocabulary, table_width); only while it is used."""

    @property
    def weight(self) -> Tensor:
        """The table (Mamba asks for its dtype)."""
        assert self.table is not None
        return self.table

    def forward(self, states: Tensor) -> Tensor:
        """Logits."""
        states = self.linear(states)
        return F.linear(states, self.weight.to(states.dtype), self.bias)


class Frame:
    """A language model of transformers on the meta device, and the same without its backbone."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.source = _language_model(config)
        self.shell = _language_model(config)
        output = self.source.get_output_embeddings()
        if not isinstance(output, nn.Linear):
            raise unusable(self.source, "has no linear output")
        self.output = output
        self.name = _name_of(self.source, output)
        table = self.source.get_input_embeddings()
        self._mapping = self.source.get_expanded_tied_weights_keys(all_submodels=True)
        self.table_weight = f"{_name_of(self.source, table)}.weight"
        self.is_tied = self._root(f"{self.name}.weight") == self._root(self.table_weight)
        _empty(self.shell)
        self._aliases = self._doubles()

    @property
    def output_weight(self) -> str:
        """Name of the projection's matrix."""
        return f"{self.name}.weight"

    def read_table(self, table_width: int) -> None:
        """Let the projection be the tied table."""
        bias = self.shell.get_submodule(self.name).bias
        width = int(self.output.weight.shape[1])
        if bias is not None:
            bias = nn.Parameter(torch.zeros(bias.shape))
        self.replace(TableProjection(width, table_width, bias))

    def replace(self, module: nn.Module) -> None:
        """Put another module in the place of the projection."""
        parent, _, leaf = self.name.rpartition(".")
        setattr(self.shell.get_submodule(parent), leaf, module)

    def skeleton(self, checkpoint: Checkpoint | None) -> Skeleton:
        """The head as something that can be filled from files."""
        found = {} if checkpoint is None else file_names(self.source, checkpoint)
        renamed = {}
        for name, same in self._aliases.items():
            if name not in found:
                renamed[name] = next((other for other in same if other in found), name)
        return Skeleton(self.shell, self.source, None, (), renamed, has_table=False)

    def _root(self, name: str) -> str:
        while name in self._mapping:
            name = self._mapping[name]
        return name

    def _doubles(self) -> dict[str, list[str]]:
        """Name of each tensor of the shell → other names that transformers ties to it. Of several
        the projection's own is used; the others stay as they are."""
        groups: dict[str, list[str]] = {}
        for name in self.shell.state_dict():
            groups.setdefault(self._root(name), []).append(name)
        for names in groups.values():
            names.sort(key=lambda name: not name.startswith(f"{self.name}."))
            for name in names[1:]:
                self.shell.get_parameter_or_buffer(name).requires_grad_(False)
        return {name: names for names in groups.values() for name in names}


def _language_model(config: PretrainedConfig) -> PreTrainedModel:
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with without_memory():
        model: PreTrainedModel = kind.from_config(
            copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False
        )
    return model


def _empty(model: PreTrainedModel) -> None:
    """Take the backbone out of a language model."""
    table = model.get_input_embeddings()
    if model.base_model is not model:
        setattr(model, model.base_model_prefix, _Passed(model.base_model))
        return
    for name, child in list(model.named_children()):  # T5's kin hold encoder and decoder themselves
        if child is table:
            setattr(model, name, _NoTable())
        elif name in ("encoder", "decoder"):
            setattr(model, name, _Passed(child))


def logits_of(shell: PreTrainedModel, states: Tensor) -> Tensor:
    """(1, positions, width) → (1, positions, vocabulary), by the model's own `forward`."""
    given: dict[str, Any] = {"inputs_embeds": states}
    if shell.config.is_encoder_decoder:
        given = {"encoder_outputs": _Read((states,)), "decoder_inputs_embeds": states}
    logits: Tensor = shell(**given, use_cache=False).logits
    return logits


def _has_layers(module: nn.Module) -> bool:
    return isinstance(module, PreTrainedModel)


def _name_of(model: nn.Module, module: nn.Module) -> str:
    names: dict[nn.Module, str] = {own: name for name, own in model.named_modules()}
    return names[module]


def unusable(model: PreTrainedModel, what: str) -> UserError:
    return UserError.single(
        type(model).__name__, f"{what}, so it can't generate here.", "Take another architecture."
    )
