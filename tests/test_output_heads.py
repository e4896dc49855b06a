"""Logits are those of transformers' own language models: heads of their own, scales, soft caps,
transforms and biases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.equal_losses import check_equal_losses
from tests.generative_configs import TEACHERS, generative_config
from tsarch.blueprint import Blueprint, resolve
from tsarch.errors import UserError
from tsarch.losses.objective import VocabularyObjective
from tsarch.losses.predictions import Logits
from tsarch.models.heads import token_logits
from tsarch.pair.generation import prompts_of
from tsarch.pair.halves import TableLookup, TeacherHalf
from tsarch.pair.pair import Plain
from tsarch.pair.states import Tokens
from tsarch.parallel.table import Table
from tsarch.planning.capacity import rank_need
from tsarch.planning.preflight import check_run
from tsarch.prepare import prepare_data
from tsarch.rank.generate import chosen_contexts
from tsarch.rank.local_crew import LocalCrew
from tsarch.records import IGNORED
from tsarch.run.saved_run import evaluate_run
from tsarch.stage.build import build_model
from tsarch.tasks.registry import make_task
from tsarch.topology import Stage

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
KEYS = {**SMALL, "num_key_value_heads": 2}
GPT: dict[str, Any] = {
    "vocab_size": 300,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 96,
}
T5 = {**TEACHERS["t5"], "vocab_size": 300, "pad_token_id": 0, "eos_token_id": 0}
BART = {**TEACHERS["bart"], "vocab_size": 300, "pad_token_id": 0, "eos_token_id": 0}
MODELS: dict[str, dict[str, Any]] = {
    "own matrix": {**KEYS, "model_type": "llama", "tie_word_embeddings": False},
    "own matrix and bias": {**SMALL, "model_type": "phi"},
    "own matrix, another width": {
        **SMALL,
        "model_type": "rembert",
        "is_decoder": True,
        "input_embedding_size": 16,
        "output_embedding_size": 24,
    },
    "table": {**KEYS, "model_type": "llama", "tie_word_embeddings": True},
    "table, narrower than the layers": {
        **SMALL,
        "model_type": "opt",
        "ffn_dim": 48,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    },
    "scaled": {
        **KEYS,
        "model_type": "granite",
        "tie_word_embeddings": True,
        "logits_scaling": 8.0,
        "embedding_multiplier": 3.0,
    },
    "multiplied": {**KEYS, "model_type": "cohere", "logit_scale": 0.25},
    "capped, with scaled embeddings": {
        **KEYS,
        "model_type": "gemma2",
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 1.0,
    },
    "transform and bias": {**SMALL, "model_type": "bert", "is_decoder": True},
    "bias": {**GPT, "model_type": "ctrl", "dff": 48},
    "encoder and decoder": T5,
    "encoder and decoder, own matrix": {**T5, "tie_word_embeddings": False},
    "encoder and decoder, bias": BART,
    "encoder and decoder, fixed positions": {**BART, "model_type": "marian"},
    "buffers deep inside, scaled tokens": {
        **KEYS,
        "model_type": "falcon_h1",
        "head_dim": 8,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 4,
        "embedding_multiplier": 5.0,
        "lm_head_multiplier": 0.1,
        "tie_word_embeddings": True,
    },
    "encoder and decoder, scaled in the encoder alone": {
        **BART,
        "model_type": "pegasus",
    },
}
BIASED = (
    "encoder and decoder, bias",
    "encoder and decoder, scaled in the encoder alone",
    "encoder and decoder, fixed positions",
)


def saved(folder: Path, kind: str) -> tuple[Path, Any]:
    """A model of transformers with weights that all differ from their starting values."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.for_model(**MODELS[kind])
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    torch.manual_seed(0)
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
        if kind in BIASED:
            model.final_logits_bias.normal_()
    place = folder / "teacher"
    model.save_pretrained(place)
    if kind == "encoder and decoder, own matrix":  # T5 1.1's files have both
        file = place / "model.safetensors"
        weights = load_file(file)
        weights["lm_head.weight"] = torch.randn(300, 32) * 0.3
        save_file(weights, file, metadata={"format": "pt"})
        raw = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": False}))
    return place, auto.from_pretrained(place).eval()


def blueprint_of(folder: Path, place: Path, **sections: dict[str, Any]) -> Blueprint:
    """A small GPT-2 learns from the model of a folder."""
    student = {"layers": None, "config": {**TEACHERS["gpt2"], "vocab_size": 300}}
    sections = {"student": student, **sections}
    sections["topology"] = {"runner": "local", **sections.get("topology", {})}
    teacher = {"model": str(place), "config": None, **sections.pop("teacher", {})}
    return resolve(generative_config(folder, "translation", "t5", teacher=teacher, **sections))


def log_probabilities(hf: Any, ids: torch.Tensor, start: int) -> torch.Tensor:
    """transformers' own, of every target position."""
    given = {"input_ids": ids}
    if hf.config.is_encoder_decoder:
        given = {"input_ids": ids[:, :start], "decoder_input_ids": ids[:, start:]}
    with torch.no_grad():
        logits = hf(**given).logits
    return torch.log_softmax(logits if hf.config.is_encoder_decoder else logits[:, start:], -1)


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_those_of_transformers_own_class(tmp_path, kind):
    place, hf = saved(tmp_path, kind)
    blueprint = blueprint_of(tmp_path, place)
    check_run(blueprint, own_ray=False)
    built = build_model(blueprint, Stage.TEACHER, None)
    half = TeacherHalf(Plain(built.module, torch.device("cpu"), torch.float32), built.module)
    ids = torch.from_numpy(np.random.default_rng(1).integers(1, 300, (1, 11)))
    tokens = Tokens.padded([ids[0].numpy(), ids[0, :8].numpy()])
    states = half.encode(TableLookup(Table(built.table)), tokens, np.array([4, 4]))
    logits = states.predictions
    if not half.output.gives_logits:
        logits = token_logits(logits, built.table)
    ours = torch.log_softmax(logits, -1)
    for row, stop in enumerate((11, 8)):
        expected = log_probabilities(hf, ids[:, :stop], 4)[0]
        torch.testing.assert_close(ours[row, 4:stop], expected, rtol=1e-5, atol=1e-5)


def test_untrained_perplexity_is_transformers(tmp_path):
    place, hf = saved(tmp_path, "own matrix")
    blueprint = blueprint_of(tmp_path, place)
    prepared = prepare_data(blueprint)
    split = prepared.splits["train"]
    crew = LocalCrew(blueprint, prepared)
    (found,) = crew.evaluate("train", [0.5])
    ours = make_task("translation", ()).metrics(split, found.teacher)["perplexity"]
    total, count = 0.0, 0
    for context in range(split.num_contexts):
        start, stop = split.context_offsets[context : context + 2]
        ids, words = split.token_ids[start:stop], split.words[start:stop]
        with torch.no_grad():
            logits = hf(torch.from_numpy(ids)[None]).logits[0]
        gold = torch.from_numpy(split.labels[words[words >= 0]])
        places = torch.from_numpy(words >= 0)
        total += float(F.cross_entropy(logits[places], gold, reduction="sum"))
        count += len(gold)
    assert ours == pytest.approx(np.exp(total / count), rel=1e-5)


@pytest.mark.parametrize(
    "kind", ["own matrix and bias", "capped, with scaled embeddings", "encoder and decoder, bias"]
)
@pytest.mark.parametrize("cache", [True, False])
def test_texts_are_those_that_transformers_generates(tmp_path, kind, cache):
    place, hf = saved(tmp_path, kind)
    blueprint = blueprint_of(tmp_path, place, decoding={"cache": cache})
    prepared = prepare_data(blueprint)
    texts = LocalCrew(blueprint, prepared).generate("test", "teacher", 0.5)
    split = prepared.splits["test"]
    contexts = chosen_contexts(split, blueprint.decoding.max_texts)
    for context, prompt in zip(contexts, prompts_of(split, contexts), strict=True):
        ids, start = torch.from_numpy(prompt.token_ids)[None], {}
        if hf.config.is_encoder_decoder:
            ids, start = ids[:, :-1], {"decoder_start_token_id": 0, "forced_eos_token_id": None}
        found = hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            max_new_tokens=blueprint.task.max_target_tokens,
            eos_token_id=0,
            pad_token_id=0,
            **start,
        )[0].tolist()
        expected = found[1:] if start else found[ids.shape[1] :]
        assert texts[context] == (expected[: expected.index(0)] if 0 in expected else expected)


@pytest.mark.parametrize("schedule", ["sequential", "joint"])
def test_a_head_of_its_own_trains_and_is_saved(tmp_path, schedule):
    place, _ = saved(tmp_path, "own matrix")
    blueprint = blueprint_of(
        tmp_path, place, student={"layers": [1], "config": None}, schedule={"name": schedule}
    )
    prepared = prepare_data(blueprint)
    crew = LocalCrew(blueprint, prepared)
    heads = [build_model(blueprint, stage, None).module.head for stage in blueprint.stages]
    torch.testing.assert_close(*(head.shell.lm_head.weight for head in heads), rtol=0, atol=0)
    before = heads[0].shell.lm_head.weight.detach().clone()
    run = run_of(tmp_path, blueprint)
    from safetensors.torch import load_file

    after = [load_file(run / "model" / f"{stage}.safetensors") for stage in blueprint.stages]
    weights = [own["head.shell.lm_head.weight"] for own in after]
    for own in weights:
        assert not torch.equal(own, before)
    assert not torch.equal(*weights)
    del crew


def run_of(folder: Path, blueprint: Blueprint) -> Path:
    """The folder of a whole run."""
    from tsarch.launch.training import run_training

    run_training(blueprint.config)
    return Path(blueprint.folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own matrix", "encoder and decoder, own matrix", BIASED[0]])
def test_a_run_is_read_back_without_the_files_that_it_started_from(tmp_path, kind):
    import shutil

    place, _ = saved(tmp_path, kind)
    run = run_of(tmp_path, blueprint_of(tmp_path, place, schedule={"epochs": 1}))
    shutil.rmtree(place)
    summary = json.loads((run / "summary.json").read_text())
    evaluation = evaluate_run(run, "test").evaluation
    for mode, metrics in evaluation.metrics.items():
        assert metrics["perplexity"] == pytest.approx(
            summary["after"][mode]["perplexity"], rel=1e-6
        )


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
@pytest.mark.parametrize("kind", ["own matrix and bias", "bias"])
def test_ranks_give_the_losses_of_one_process(tmp_path, crews, kind):
    place, _ = saved(tmp_path, kind)
    student = {"layers": [1], "config": None}
    blueprint = blueprint_of(tmp_path, place, student=student, topology={"runner": "ray"})
    check_equal_losses(blueprint.config, (2, 1), crews, num_steps=4)


LEAKING = {
    "bert-generation": SMALL,
    "xlnet": {"vocab_size": 300, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "gemma3_text": {**KEYS, "head_dim": 8, "use_bidirectional_attention": True},
}


@pytest.mark.parametrize("kind", LEAKING)
def test_models_that_see_later_tokens_are_refused(tmp_path, kind):
    teacher = {"config": {**LEAKING[kind], "model_type": kind}}
    student = {"layers": None, "config": {**TEACHERS["gpt2"], "vocab_size": 300}}
    config = generative_config(
        tmp_path, "translation", "llama", teacher=teacher, student=student,
        topology={"runner": "local"},
    )  # fmt: skip
    with pytest.raises(UserError, match="sees later tokens"):
        check_run(resolve(config), own_ray=False)


@pytest.mark.parametrize(
    "values",
    [
        {**KEYS, "model_type": "gemma", "head_dim": 8},
        {**KEYS, "model_type": "gemma3_text", "head_dim": 8},
        {**SMALL, "model_type": "bert-generation", "is_decoder": True},
        {**BART, "model_type": "marian"},
        {
            **KEYS,
            "model_type": "qwen2_moe",
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 1408,
        },
    ],
    ids=lambda values: values["model_type"],
)
def test_models_that_were_refused_for_nothing_are_taken(tmp_path, values):
    student = {"layers": None, "config": {**TEACHERS["gpt2"], "vocab_size": 300}}
    config = generative_config(
        tmp_path, "translation", "llama", teacher={"config": values}, student=student,
        topology={"runner": "local"},
    )  # fmt: skip
    blueprint = resolve(config)
    check_run(blueprint, own_ray=False)
    assert rank_need(blueprint, Stage.TEACHER, prepare_data(blueprint)).states.total > 0


def test_a_head_of_its_own_counts_in_the_memory_of_a_rank(tmp_path):
    values = {**KEYS, "model_type": "llama"}
    needs = []
    for own in ({}, {"tie_word_embeddings": False}):
        config = generative_config(
            tmp_path, "translation", "llama", teacher={"config": {**values, **own}},
            topology={"runner": "local"},
            student={"layers": None, "config": {**TEACHERS["gpt2"], "vocab_size": 300}},
        )  # fmt: skip
        blueprint = resolve(config)
        needs.append(rank_need(blueprint, Stage.TEACHER, prepare_data(blueprint)).states.weights)
    assert needs[1] - needs[0] == 4 * 300 * 32


def test_files_without_the_head_are_refused(tmp_path):
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(**MODELS["own matrix"])
    AutoModel.from_config(config).save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"no weights for lm_head\.weight"):
        check_run(blueprint_of(tmp_path, tmp_path / "teacher"), own_ray=False)


def test_a_head_of_another_vocabulary_is_refused(tmp_path):
    place, _ = saved(tmp_path, "own matrix")
    student = {
        "layers": None,
        "config": {**KEYS, "model_type": "llama", "vocab_size": 301, "tie_word_embeddings": False},
    }
    with pytest.raises(UserError, match="its output has 301 tokens, the embedding table 300"):
        check_run(blueprint_of(tmp_path, place, student=student), own_ray=False)


def test_distillation_between_all_kinds_of_predictions_is_that_of_their_logits():
    torch.manual_seed(0)
    table, hidden = torch.randn(7, 4), torch.randn(2, 2, 3, 4)
    labels = torch.tensor([[1, IGNORED, 3], [IGNORED, 2, 0]])
    chosen = labels != IGNORED
    logits = [token_logits(own, table) for own in hidden]
    objective = VocabularyObjective()
    expected = objective.divergences(*hidden, labels, 2.0, table)
    as_logits = [Logits(own[chosen], chosen) for own in logits]
    for student in (hidden[0], as_logits[0]):
        torch.testing.assert_close(
            objective.losses(student, labels, table), objective.losses(hidden[0], labels, table)
        )
        for teacher in (hidden[1], as_logits[1]):
            found = objective.divergences(student, teacher, labels, 2.0, table)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
