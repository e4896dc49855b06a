"""A drafter in the layout of the package `speculators`, for engines that propose with EAGLE-3.

Its norms of the teacher's states are of weight 1, but that of the last ones, which here are fed
after the teacher's own last norm: that norm's weight is written. The vocabulary's map is one of
offsets: token i of the drafter is token i + d2t[i]. The table is written too: where it is missing
speculators leaves random rows in its place.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tsarch.errors import UserError
from tsarch.export.models import TrainedModels
from tsarch.models.drafter_model import DrafterModel

VERSION = "0.9.0"
"""Of speculators, whose layout this is."""
VERIFIER = "teacher"
"""Folder of the teacher, beside the drafter's."""
_KINDS = ("llama", "qwen3")
"""Kinds of layers that it has a drafter of."""
_MOST_APART = 1e-4


def write_drafter(models: TrainedModels, drafter: DrafterModel, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`.

    Raises:
        UserError: the layout has no place for something that the drafter has.
    """
    tensors = _tensors(models, drafter)
    config = _config(models, drafter)
    folder.mkdir()
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    whole = {name: own.contiguous() for name, own in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def _config(models: TrainedModels, drafter: DrafterModel) -> dict[str, Any]:
    teacher: Any = models.teacher
    own: Any = drafter.backbone.config
    kind = own.model_type
    if kind not in _KINDS:
        what = f"are {kind}'s; speculators knows those of {' and '.join(_KINDS)}."
        raise UserError.single("its layers", what)
    layer = {
        **own.to_diff_dict(),
        "model_type": kind,
        "head_dim": drafter.backbone.get_submodule("layers.0").self_attn.head_dim,
        "vocab_size": len(models.table),
    }
    for name in ("dtype", "transformers_version", "use_cache", "architectures"):
        layer.pop(name, None)
    greedy = {"proposal_type": "greedy", "speculative_tokens": drafter.num_steps}
    return {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_version": VERSION,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [greedy],
            "verifier": {
                "name_or_path": VERIFIER,
                "architectures": _architectures(teacher.backbone.config.model_type),
            },
        },
        "transformer_layer_config": layer,
        "draft_vocab_size": len(drafter.choices),
        "eagle_aux_hidden_state_layer_ids": [*teacher.taps, _num_layers(teacher)],
        "norm_before_residual": True,
        "norm_before_fc": False,
        "fc_norm": True,
        "norm_output": True,
        "embed_requires_grad": False,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }


def _architectures(kind: str) -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    return [name] if isinstance(name, str) else []


def _num_layers(model: Any) -> int:
    return int(model.backbone.config.num_hidden_layers)


def _tensors(models: TrainedModels, drafter: DrafterModel) -> dict[str, Tensor]:
    teacher: Any = models.teacher
    width = int(teacher.backbone.config.hidden_size)
    if not width == drafter.backbone.config.hidden_size == models.table.shape[1]:
        sizes = f"{drafter.backbone.config.hidden_size}, {width}, {models.table.shape[1]}"
        what = f"must be as wide as teacher and table, which are {sizes}."
        raise UserError.single("it", what)
    found: dict[str, Tensor] = {**drafter.backbone.state_dict(), "fc.weight": drafter.fuse.weight}
    norms = [torch.ones(width)] * len(teacher.taps) + [_last_norm(teacher, drafter)]
    found |= {f"fc_norm.{place}.weight": own.clone() for place, own in enumerate(norms)}
    vocabulary, choices = len(models.table), drafter.choices
    with torch.no_grad():
        found["embed_tokens.weight"] = models.table
        found["lm_head.weight"] = models.table[choices] * models.blueprint.table.scale
    if len(choices) < vocabulary:
        found["d2t"] = choices - torch.arange(len(choices))
        found["t2d"] = torch.zeros(vocabulary, dtype=torch.bool).index_fill(0, choices, True)
    return found


def _last_norm(teacher: Any, drafter: DrafterModel) -> Tensor:
    """Weight of the teacher's last norm, as a root mean square norm with the drafter's eps.

    Raises:
        UserError: it is another kind of norm.
    """
    norm: nn.Module = teacher.backbone.norm
    width = int(teacher.backbone.config.hidden_size)
    eps = float(drafter.backbone.config.rms_norm_eps)
    probe = torch.randn(8, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight: Tensor = norm(torch.ones(width))
        gap = (norm(probe) - F.rms_norm(probe, (width,), weight, eps)).abs().max()
    if not gap <= _MOST_APART * float(weight.abs().max()):
        what = "isn't the root mean square norm that speculators has for states."
        raise UserError.single("its teacher's last norm", what)
    return weight
