"""What the sweep of architectures varies: small sizes by hand, and switches of the forward pass."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig

SIZES: dict[str, dict[str, Any]] = {
    "axk1": {"head_dim": 4},
    "bamba": {"mamba_d_head": 16},
    "cpmant": {"dim_ff": 48},
    "codegen": {"rotary_dim": 4},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4, "topk_method": "greedy"},
    "deepseek_v3": {"head_dim": 4},
    "distilbert": {"sinusoidal_pos_embds": True},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "fsmt": {"src_vocab_size": 320, "tgt_vocab_size": 320, "vocab_size": 320},
    "funnel": {"block_sizes": [1, 1, 1], "num_decoder_layers": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"mamba_d_head": 16},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"layers_block_type": ["attention", "mamba", "mamba", "attention"]},
    "kimi_linear": {"num_experts": 4, "num_experts_per_token": 2},
    "lfm2_moe": {"num_dense_layers": 1},
    "lilt": {"channel_shrink_ratio": 1},
    "longcat_flash": {"head_dim": 4},
    "longformer": {"attention_window": 4},
    "luke": {"entity_vocab_size": 5, "entity_emb_size": 8},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "mobilebert": {"true_hidden_size": 32, "intra_bottleneck_size": 32},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
    "rwkv": {"attention_hidden_size": 32},
    "xlnet": {"d_head": 8},
    "xlstm": {"num_heads": 2},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "youtu": {"head_dim": 4},
    "zamba2": {"mamba_headdim": 16},
}
"""Sizes that must fit each other, and that names alone don't tell."""
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "bert": [{"is_decoder": True}],
    "big_bird": [{"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}],
    "bigbird_pegasus": [{"attention_type": "original_full"}],
    "deberta": [{"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}],
    "deberta-v2": [
        {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "conv_kernel_size": 3,
            "conv_act": "gelu",
        },
        {"embedding_size": 16},
    ],
    "electra": [{"embedding_size": 16}],
    "esm": [{"token_dropout": True, "mask_token_id": 3, "emb_layer_norm_before": True}],
    "gpt_neo": [{"attention_types": [[["global", "local"], 2]], "num_layers": 4}],
    "opt": [{"word_embed_proj_dim": 16, "do_layer_norm_before": False}],
    "qwen2": [{"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 4}],
    "rembert": [{"input_embedding_size": 16, "output_embedding_size": 24}],
    "t5": [{"feed_forward_proj": "gated-gelu"}],
}
"""Settings that no rule finds."""
_LEFT_ALONE = re.compile(
    r"is_decoder|is_encoder_decoder|use_cache|output_\w+|return_\w+|add_cross_attention"
    r"|gradient_checkpointing|torchscript|\w*dropout\w*|\w*drop|\w*_prob|initializer\w*|init_\w+"
    r"|\w*_std|\w*eps\w*|\w*loss\w*|\w*_coef|\w*jitter\w*|use_mems\w*|\w*lr_\w*|summary_\w+"
    r"|is_training|\w*gate_init\w*|cross_attention\w*|time_step_\w+|rescale_\w+"
    r"|output_router_logits|tie_\w+|untie_\w+"
)
_UNSET: dict[str, float] = {
    "final_logit_softcapping": 1.5,
    "attn_logit_softcapping": 2.0,
    "logit_scale": 0.3,
    "logits_scaling": 3.0,
    "embedding_multiplier": 2.5,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.3,
}


def switches(config: PretrainedConfig) -> dict[str, Any]:
    """Everything in a config that may change the forward pass, each in another state."""
    return dict(_switches(config.to_dict()))


def _switches(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if _LEFT_ALONE.fullmatch(name) or name.startswith("_"):
            continue
        if type(value) is bool:
            yield name, not value
        elif type(value) is float and math.isfinite(value):
            yield name, _UNSET.get(name, value * 1.25 if value else 0.5)
        elif value is None and name in _UNSET:
            yield name, _UNSET[name]
    rope = values.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        yield "rope_parameters", {**rope, "rope_theta": 50.0}
