"""A small model of the same kind: an architecture's config with every size made small.

What a model computes is the same at any size: all other settings (scales, caps, biases, kinds of
layers) stay as they are.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from tsarch.models.skeleton import cut_lists

VOCABULARY = 320
_NUM_LAYERS = 4
_SIZES: Sequence[tuple[str, int]] = (
    (r"vocab_size(_per_layer_input)?", VOCABULARY),
    (r"(num_|n_)?(key_value|kv)_heads", 2),
    (r"\w*(heads?|head_num)", 4),
    (r"qk_(rope|nope)_head_dim", 4),
    (r"index_head_dim", 8),
    (r"\w*(head_dim|d_kv|d_head|kv_channels|head_size)", 8),
    (r"(q|kv|o)_lora_rank|\w*_lora_(dim|rank)|laurel_rank|time_step_rank", 16),
    (r"(\w+_)?(embedding_size|emb_size|word_embed_proj_dim)", 32),
    (r"(moe|shared_expert|expert)\w*(intermediate|ffn_hidden)_size|expert_ffn_hidden_size", 16),
    (r"\w*(intermediate_size|ffn_dim|d_ff|d_inner|n_inner|hidden_dim|ffn_size)\w*", 48),
    (r"\w*(ffn_hidden_size|dff|inner_dim|mlp_dim|mlp_size|lru_width|attention_hidden_size)", 48),
    (r"hidden_size_per_layer_input", 8),
    (r"\w*(hidden_size|d_model|n_embd|emb_dim|embed_dim)|dim|n_embed", 32),
    (r"num_experts_per_tok|moe_topk|moe_top_k|top_k_experts|num_selected_experts", 2),
    (r"(num|n)_(\w+_)?experts|moe_num_experts|zero_expert_num", 4),
    (r"n_group", 2),
    (r"topk_group|n_shared_experts|num_shared_experts", 1),
    (r"\w*(sliding_window|attention_window|window_size|local_attention|local_radius)\w*", 4),
    (r"\w*(chunk_size|block_size)", 4),
    (r"\w*(max_position|n_positions|n_ctx|max_seq|max_sequence|seq_length|max_source)\w*", 66),
    (r"ssm_state_size|state_size|mamba_d_state|d_state", 4),
    (r"n_groups|mamba_n_groups", 1),
    (r"index_topk|index_n_heads", 4),
)
"""Name → the most that a size may be."""
_LARGEST_DIFFERENCE = 1e-5
"""Of rounding, in fp32, over the largest number."""
_TRIED: dict[tuple[Any, type[PretrainedConfig], str], bool] = {}
"""By config: trying takes a tenth of a second."""
_LAYERS = r"(num|n|encoder|decoder)_(\w+_)?layers?"


def small_copy(config: PretrainedConfig, **changes: Any) -> PretrainedConfig:
    """`config` with small sizes, and other changes.

    Raises:
        Exception: the architecture wants sizes that belong together in another way.
    """
    small = copy.deepcopy(config)
    cut_lists(small, _kinds_of_layers(small))
    values = small.to_dict()
    kind = values.pop("model_type")
    for name, value in values.items():
        values[name] = _small(name, value)
    values |= _consistent(config, values)
    return AutoConfig.for_model(kind, **{**values, **changes})


def small_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model of `small_copy(config)` that doesn't train; all parameters are random, those too that
    start as zeros, and the same each time.

    Raises:
        Exception: it can't be built.
    """
    model: PreTrainedModel = AutoModel.from_config(
        small_copy(config), dtype=torch.float32, trust_remote_code=False
    ).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def computes_the_same(
    difference: Callable[[PretrainedConfig], float], config: PretrainedConfig
) -> bool:
    """Whether models of an architecture compute the same in another way, known by a small one.

    Args:
        difference: of its numbers in both ways, over the largest of them; what it raises is a no:
            architectures that can't be built small, or be read so, have errors of their own.
    """
    key = difference, type(config), config.to_json_string(use_diff=False)
    if key not in _TRIED:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            try:
                _TRIED[key] = difference(config) <= _LARGEST_DIFFERENCE
            except Exception:
                _TRIED[key] = False
    return _TRIED[key]


def _kinds_of_layers(config: PretrainedConfig) -> list[int]:
    """A few layers, of every kind that there is."""
    number = int(config.num_hidden_layers)
    types = getattr(config, "layer_types", None) or []
    chosen = sorted({types.index(kind) for kind in types} | set(range(min(2, number))))
    rest = [i for i in range(number) if i not in chosen]
    return sorted([*chosen, *rest[: max(_NUM_LAYERS - len(chosen), 0)]])


def _small(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple) and value and all(type(v) is int for v in value):
        return [_small(name, v) for v in value]
    if type(value) is not int:
        return value
    if re.search(r"token_ids?$|_index$|_id$", name):
        return value if value < VOCABULARY // 2 else value % 4
    for pattern, most in _SIZES:
        if re.fullmatch(pattern, name):
            return min(value, most)
    return value


def _consistent(config: PretrainedConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes that depend on others: layers, and widths that differ from the hidden one."""
    found: dict[str, Any] = {}
    cut = len(_kinds_of_layers(config))
    for name, value in values.items():
        if re.fullmatch(_LAYERS, name) and type(value) is int:
            found[name] = min(value, cut)
        if re.search(r"embedding_size|word_embed_proj_dim", name) and type(value) is int:
            own = getattr(config, name)
            found[name] = value if own == config.hidden_size else value // 2
    heads = getattr(config, "num_attention_heads", None)
    if type(heads) is int and "num_key_value_heads" in values:
        kv = getattr(config, "num_key_value_heads", None)
        found["num_key_value_heads"] = values.get("num_attention_heads", 4) if kv == heads else (
            kv if kv is None else min(kv, 2)
        )  # fmt: skip
    return found
