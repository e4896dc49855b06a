"""What is done to a backbone once it is built: low-rank adapters and activation checkpointing."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from tsarch.errors import UserError


def add_adapters(
    model: PreTrainedModel,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: Sequence[str] | None,
) -> None:
    """Freeze the backbone and put low-rank adapters beside its linear layers (Hu et al. 2021).

    They are injected, so the backbone keeps its class and the names of its layers; a layer's own
    weight is then called `….base_layer.weight`. They start as nothing (B is zero), A from torch's
    random state. `target_modules` are ends of names, None: peft's for the architecture.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = list(target_modules) if target_modules is not None else None
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)
    inject_adapter_in_model(config, model)


def checkpoint_activations(model: PreTrainedModel, offload: bool = False) -> None:
    """Keep only the layers' inputs for the backward pass, which computes each layer again with the
    same random state. Without reentry: inputs need no gradient, and several forwards may be
    outstanding. `offload`: they are kept in host memory, pinned, which takes an accelerator."""
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # encoders have no use for it, and checkpointing refuses it
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False}, offload=offload
    )


def check_targets(config: PretrainedConfig, target_modules: Sequence[str] | None) -> None:
    """Check that every name of `target_modules` is that of linear layers of the architecture.

    Raises:
        UserError: it isn't, or `peft` has no default for the architecture. Names those there are.
    """
    linear = _linear_layers(_hollow_model(config))
    kinds = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
    hint = f"Linear layers of {config.model_type}: {kinds}."
    targets = target_modules
    if targets is None:
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

        targets = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(config.model_type)
        if targets is None:
            raise UserError.single(
                "target_modules", f"peft has no default for {config.model_type}.", hint
            )
    unknown = [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in linear)]
    if unknown:
        names = ", ".join(repr(name) for name in unknown)
        raise UserError.single("target_modules", f"no linear layer is called {names}.", hint)


def can_checkpoint(config: PretrainedConfig) -> bool:
    """Whether the architecture can compute its layers again in the backward pass."""
    return bool(_hollow_model(config).supports_gradient_checkpointing)


def _hollow_model(config: PretrainedConfig) -> PreTrainedModel:
    """The encoder of `config` without memory for its weights."""
    with torch.device("meta"):
        return AutoModel.from_config(copy.deepcopy(config), trust_remote_code=False)


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """Full names of the linear layers, without the pooler, which backbones here lack."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("pooler.")
    ]
