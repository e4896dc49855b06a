"""The parity probe: what a stage computes is what transformers' own class computes, or no run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from tests.generative_configs import generative_config, tokenizer_folder
from tests.helpers import tiny_config, tiny_raw
from tests.suites.parity_batch import sweep
from tsarch.blueprint import Blueprint, resolve
from tsarch.config_loading import parse_config
from tsarch.errors import UserError
from tsarch.models.backbone import backbone_config, build_backbone
from tsarch.models.small_copy import small_copy
from tsarch.pair.generation import TeacherGeneration
from tsarch.planning import own_path, parity
from tsarch.planning.parity import LARGEST_DIFFERENCE, check_parity
from tsarch.planning.preflight import check_run
from tsarch.planning.reference import save_random

SIZES = {"vocab_size": 320, "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0}
DECODER = SIZES | {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8}
XLM = {"vocab_size": 320, "emb_dim": 32, "n_layers": 4, "n_heads": 4, "n_langs": 1}


def encoder_run(folder: Path, layers: list[int] | None = None, **config: Any) -> Blueprint:
    """A run of a random encoder, with a student of its layers."""
    raw = tiny_raw(folder)
    raw["teacher"] |= {"config": config, "max_tokens": 40}
    raw["student"]["layers"] = layers
    if layers is None:
        del raw["student"], raw["distillation"]
    return resolve(parse_config(raw, "tiny"))


def generative_run(folder: Path, model: str) -> Blueprint:
    """A run of random models that generate."""
    return resolve(generative_config(folder, "translation", model))


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5"])
def test_models_that_generate_are_what_transformers_has(tmp_path, model):
    assert check_parity(generative_run(tmp_path, model)) == []


def test_pretrained_files_are_what_transformers_reads_from_them(tmp_path):
    own = AutoConfig.for_model("roberta", **{**SIZES, "pad_token_id": 1})
    save_random(own, False, str(tmp_path / "model"))
    raw = tiny_raw(tmp_path, teacher={"model": str(tmp_path / "model"), "max_tokens": 40})
    del raw["teacher"]["config"]
    blueprint = resolve(parse_config(raw, "tiny"))
    assert check_parity(blueprint, np.arange(5, 200)) == []


def test_nothing_random_moves(tmp_path):
    blueprint = resolve(tiny_config(tmp_path))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    check_parity(blueprint)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def refusal(blueprint: Blueprint) -> str:
    with pytest.raises(UserError) as caught:
        check_parity(blueprint)
    return str(caught.value)


def test_a_scale_that_is_left_out_is_refused(tmp_path, monkeypatch):
    logits = own_path.token_logits
    monkeypatch.setattr(own_path, "token_logits", lambda *given: logits(*given) * 1.001)
    said = refusal(generative_run(tmp_path, "gpt2"))
    assert "teacher.config: gpt2 computes something else here than transformers' GPT2LMHead" in said
    assert "its log-probabilities differ by" in said
    assert "student.layers: gpt2" in said


def test_padding_that_is_seen_is_refused(tmp_path, monkeypatch):
    forward = own_path.TeacherModel.forward
    monkeypatch.setattr(
        own_path.TeacherModel,
        "forward",
        lambda self, embeds, mask, *rest: forward(self, embeds, torch.ones_like(mask), *rest),
    )
    said = refusal(encoder_run(tmp_path, model_type="bert", **SIZES))
    assert "its hidden states differ by" in said
    assert "as a padded batch" in said


def test_a_first_generated_token_in_another_place_is_refused(tmp_path, monkeypatch):
    read = TeacherGeneration._read
    monkeypatch.setattr(
        TeacherGeneration,
        "_read",
        lambda self, inputs, mask, places, *more: read(self, inputs, mask, places * 0, *more),
    )
    assert "token by token" in refusal(generative_run(tmp_path, "gpt2"))


def test_what_a_model_raises_is_one_message(tmp_path, monkeypatch):
    def fails(*_: Any) -> None:
        raise RuntimeError("no such mode")

    monkeypatch.setattr(own_path.TeacherModel, "forward", fails)
    said = refusal(encoder_run(tmp_path, model_type="bert", **SIZES))
    assert "teacher.config: bert: it can't be read row by row (RuntimeError: no such mode)" in said


def test_rows_of_full_length_are_tried(tmp_path):
    sizes = {**SIZES, "max_position_embeddings": 30, "position_embedding_type": "absolute"}
    said = refusal(encoder_run(tmp_path, model_type="ibert", **sizes))
    assert "it can't be trained on rows of teacher.max_tokens = 40 (IndexError: " in said


@pytest.mark.parametrize("model_type", ["mpnet", "roberta", "luke"])
def test_positions_after_the_paddings_are_those_that_there_are(tmp_path, model_type):
    sizes = {**SIZES, "vocab_size": 30522, "pad_token_id": 1, "max_position_embeddings": 41}
    with pytest.raises(UserError, match=r"teacher.max_tokens: is 40, the model has 39 positions"):
        check_run(encoder_run(tmp_path, model_type=model_type, **sizes), own_ray=False)


@pytest.mark.parametrize("model_type", ["layoutlm", "squeezebert", "bert"])
def test_poolers_are_not_missed(tmp_path, model_type):
    own = {"embedding_size": 32} if model_type == "squeezebert" else {}
    assert check_parity(encoder_run(tmp_path, model_type=model_type, **SIZES, **own)) == []


def test_longformers_pad_to_whole_windows_by_themselves(tmp_path):
    own = SIZES | {"attention_window": 8, "pad_token_id": 1, "vocab_size": 30522}
    blueprint = encoder_run(tmp_path, [0, 2], model_type="longformer", **own)
    check_run(blueprint, own_ray=False)
    assert check_parity(blueprint) == []


def test_of_models_too_large_to_hold_twice_small_copies_are_compared(tmp_path, monkeypatch):
    save_random(AutoConfig.for_model("bert", **SIZES), False, str(tmp_path / "model"))
    files = {"model": str(tmp_path / "model"), "config": None}
    blueprint = encoder_run(tmp_path, [0, 1], model_type="bert", **SIZES).altered(teacher=files)
    monkeypatch.setattr(parity, "host_memory", lambda: 200_000)
    notes = check_parity(blueprint)
    assert notes[0].startswith("note: teacher: names and config are checked, and what a small copy")
    assert "this machine has 0.0 GB free" in notes[0]
    assert "no small copy of it can be made (it is made of some layers)" in notes[2]
    monkeypatch.setattr(own_path.TeacherModel, "forward", lambda *_: 1 / 0)
    assert "teacher.model: bert: it can't be read row by row" in refusal(blueprint)


def test_large_random_models_are_compared_as_small_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "_MOST_RANDOM_BYTES", 1000)
    notes = check_parity(encoder_run(tmp_path, model_type="bert", **SIZES))
    assert notes[0].endswith("it has no pretrained weights")


LAYERED: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "gpt_neo": {
        "vocab_size": 320,
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 3,
        "max_position_embeddings": 64,
    },
    "smollm3": DECODER | {"no_rope_layer_interval": 2},
    "cohere2": DECODER | {"sliding_window": 3},
    "llama4_text": DECODER | {"num_local_experts": 2, "intermediate_size_mlp": 48},
    "modernbert": SIZES | {"local_attention": 4, "global_attn_every_n_layers": 2},
    "xlm": XLM,
    "flaubert": XLM,
}


@pytest.mark.parametrize("layers", [[0, 3], [3, 0]], ids=str)
@pytest.mark.parametrize("model_type", LAYERED)
def test_a_students_layers_compute_what_they_do_in_the_teacher(tmp_path, model_type, layers):
    if model_type == "modernbert" and layers[0]:
        pytest.skip("its first layer alone lacks a norm: refused")
    own = {**LAYERED[model_type], "model_type": model_type}
    assert check_parity(encoder_run(tmp_path, layers, **own)) == []


def test_a_layer_that_depends_on_its_number_is_refused(tmp_path):
    sizes = {"vocab_size": 320, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
    own = {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True, **sizes}
    said = refusal(encoder_run(tmp_path, [0, 3], **own))
    assert said.startswith("student.layers: gpt2 computes something else")
    assert check_parity(encoder_run(tmp_path, [0, 1], **own)) == []


def test_every_list_of_a_layers_parts_is_cut(tmp_path):
    config = backbone_config(None, {"model_type": "xlm", **XLM}, 0.0, 0.0)
    teacher = build_backbone(config, None, len).model
    student = build_backbone(config, None, len, [0, 3]).model
    for part in ("attentions.{}.q_lin", "ffns.{}.lin1", "layer_norm1.{}"):
        own, wanted = (m.get_submodule(part.format(i)) for m, i in ((student, 1), (teacher, 3)))
        assert torch.equal(own.weight, wanted.weight), part


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"mlp_only_layers": [1, 3]}, {"mlp_only_layers": [1]}),
        ({"layer_types": list("abca")}, {"layer_types": ["a", "a"]}),
        ({"no_rope_layers": [1, 1, 1, 0]}, {"no_rope_layers": [1, 0]}),
        ({"pos_att_type": ["p2c"] * 4}, {"pos_att_type": ["p2c"] * 4}),
    ],
    ids=lambda given: next(iter(given)),
)
def test_lists_of_layers_are_cut_by_what_they_are(values, wanted):
    from tsarch.models.skeleton import shrink_config

    config = AutoConfig.for_model("bert", num_hidden_layers=4)
    for name, value in values.items():
        object.__setattr__(config, name, value)
    shrink_config(config, [0, 3])
    assert {name: getattr(config, name) for name in wanted} == wanted


@pytest.mark.parametrize("model_type", ["llama", "granite", "gemma2", "t5", "bart", "deberta-v2"])
def test_small_copies_are_of_the_same_kind(model_type):
    config = AutoConfig.for_model(model_type)
    small = small_copy(config)
    assert small.hidden_size == 32
    assert small.vocab_size == 320
    for name in ("tie_word_embeddings", "scale_embedding", "logits_scaling", "pos_att_type"):
        assert getattr(small, name, None) == getattr(config, name, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["granite", "opt", "roberta"])
def test_a_part_of_the_sweep(tmp_path, name):
    """All of it: `make parity`."""
    tokenizer_folder(tmp_path)
    outcomes = sweep(name, tmp_path).outcomes
    assert len(outcomes) >= 3
    assert {own.status for own in outcomes} <= {"supported", "refused", "impossible"}
    supported = [own for own in outcomes if own.status == "supported"]
    assert max(own.difference for own in supported) <= LARGEST_DIFFERENCE
