"""`dropout: 0` means none: nothing that a model draws while training is left."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import EncoderDecoderConfig, PretrainedConfig

from tests.helpers import tiny_blueprint
from tsarch.models.backbone import backbone_config, build_backbone
from tsarch.models.dropout import set_dropout
from tsarch.models.teacher_model import TeacherModel
from tsarch.seeding import torch_seed
from tsarch.stage.build import build_model
from tsarch.topology import Stage

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODER = {**SIZES, "intermediate_size": 24}
DEEP_DECODER = {
    "d_model": 16,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 2,
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": ENCODER,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "albert": {**ENCODER, "embedding_size": 16},
    "modernbert": {**ENCODER, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
    "flaubert": {"emb_dim": 16, "n_layers": 4, "n_heads": 2, "n_langs": 1, "pad_index": 2},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "gpt_neo": {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 24,
        "attention_types": [[["global", "local"], 1]],
    },
    "opt": {**SIZES, "num_hidden_layers": 4, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "biogpt": {**ENCODER, "num_hidden_layers": 4},
    "xglm": {"d_model": 16, "ffn_dim": 24, "num_layers": 4, "attention_heads": 2},
    "bart": DEEP_DECODER,
    "m2m_100": DEEP_DECODER,
    "pegasus": DEEP_DECODER,
    "t5": {**T5, "decoder_start_token_id": 0},
    "switch_transformers": {**T5, "decoder_start_token_id": 0, "num_experts": 2},
}


def dropping_config(kind: str) -> PretrainedConfig:
    """A config in which all that sounds like dropout is at a half."""
    raw = {"model_type": kind, "vocab_size": 40, **ARCHITECTURES[kind]}
    config = backbone_config(None, raw, dropout=0.0, attention_dropout=0.0)
    for name, value in list(vars(config).items()):
        if any(word in name for word in ("drop", "jitter")) and type(value) in (int, float):
            setattr(config, name, 0.5)
    return config


def drawn(config: PretrainedConfig) -> tuple[Tensor, Tensor]:
    """Hidden states of the same text, twice, in a model that trains."""
    backbone = build_backbone(config, None, partial(torch_seed, 0))
    teacher = TeacherModel(backbone, backbone.embedding_width, 3, 0.0).train()
    torch.manual_seed(0)
    embeds, mask = torch.randn(2, 7, backbone.embedding_width), torch.ones(2, 7, dtype=torch.long)
    starts = torch.tensor([3, 3])
    first, second = (teacher(embeds.clone(), mask, starts)[0] for _ in range(2))
    return first, second


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_without_dropout_a_model_in_training_repeats_itself(kind):
    config = dropping_config(kind)
    assert not torch.equal(*drawn(config))
    set_dropout(config, 0.0, 0.0)
    for _ in range(3):
        assert torch.equal(*drawn(config))


def test_no_layer_is_dropped_as_a_whole_and_activations_up_to_the_key():
    config = dropping_config("bart")
    set_dropout(config, 0.2, 0.1)
    assert (config.dropout, config.attention_dropout) == (0.2, 0.1)
    assert (config.encoder_layerdrop, config.decoder_layerdrop) == (0.0, 0.0)
    assert config.activation_dropout == 0.2
    config.activation_dropout = 0.05
    set_dropout(config, 0.2, 0.1)
    assert config.activation_dropout == 0.05


def test_hidden_layers_get_the_probability_under_the_names_they_have_for_it():
    for kind, names in {
        "gpt_neo": ("resid_dropout", "embed_dropout"),
        "gpt2": ("resid_pdrop", "embd_pdrop"),
        "modernbert": ("embedding_dropout", "mlp_dropout"),
        "t5": ("dropout_rate",),
        "bert": ("hidden_dropout_prob",),
    }.items():
        config = dropping_config(kind)
        set_dropout(config, 0.3, 0.0)
        assert [getattr(config, name) for name in names] == [0.3] * len(names), kind


def test_a_routers_bound_is_no_noise():
    mixtral = backbone_config(None, {"model_type": "mixtral", "router_jitter_noise": 0.2}, 0.0, 0.0)
    assert mixtral.router_jitter_noise == 0.0
    phimoe = backbone_config(None, {"model_type": "phimoe", "router_jitter_noise": 0.2}, 0.0, 0.0)
    assert phimoe.router_jitter_noise == 0.2


def test_a_config_inside_a_config_is_set_too():
    parts = dropping_config("bert"), dropping_config("gpt2")
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    set_dropout(config, 0.0, 0.2)
    assert (config.encoder.hidden_dropout_prob, config.decoder.resid_pdrop) == (0.0, 0.0)
    assert (config.encoder.attention_probs_dropout_prob, config.decoder.attn_pdrop) == (0.2, 0.2)


def test_a_probability_that_the_architecture_cannot_take_is_named():
    mpt = {"model_type": "mpt", "hidden_size": 16}
    assert backbone_config(None, mpt, 0.1, 0.0).attn_config.attn_pdrop == 0
    with pytest.raises(ValueError, match=r"attn_pdrop can't be 0\.1 in transformers: "):
        backbone_config(None, mpt, 0.0, 0.1)


def test_a_stage_has_no_module_that_drops_anything(tmp_path):
    own = {**DEEP_DECODER, "model_type": "bart", "vocab_size": 30522, "encoder_layerdrop": 0.9}
    config = {**own, "decoder_layerdrop": 0.9, "activation_dropout": 0.9}
    blueprint = tiny_blueprint(tmp_path, teacher={"config": config, "dropout": 0.0})
    module = build_model(blueprint, Stage.TEACHER, 3).module
    found = [m.p for m in module.modules() if isinstance(m, nn.Dropout)]
    assert found
    assert set(found) == {0.0}
    layered = [m.layerdrop for m in module.modules() if hasattr(m, "layerdrop")]
    assert layered == [0.0, 0.0]
