"""A text gives the same numbers whatever is read beside it, or the model is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.generative_configs import TEACHERS, generative_config
from tests.helpers import tiny_blueprint
from tsarch.blueprint import Blueprint, resolve
from tsarch.errors import UserError
from tsarch.models.backbone import backbone_config, build_backbone
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.planning.preflight import check_run, run_notes
from tsarch.planning.reading_trial import reading_mistakes, reading_notes
from tsarch.planning.small_models import small_backbone
from tsarch.seeding import torch_seed
from tsarch.topology import Stage

ENCODER = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
}
SPARSE = {**ENCODER, "model_type": "big_bird", "attention_type": "block_sparse"}
BIG_BIRD = {**SPARSE, "block_size": 4, "num_random_blocks": 1}
BART = {
    "model_type": "bart",
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "decoder_start_token_id": 2,
}


def blueprint_of(folder: Path, config: dict[str, Any], max_tokens: int = 60) -> Blueprint:
    """A teacher of a config beside a BERT."""
    return tiny_blueprint(
        folder,
        teacher={"config": config, "max_tokens": max_tokens},
        student={
            "layers": None,
            "config": {**ENCODER, "model_type": "bert"},
            "max_tokens": min(max_tokens, 40),
        },
        topology={"runner": "local"},
    )


@pytest.mark.parametrize(
    "config",
    [
        {**ENCODER, "model_type": "convbert", "embedding_size": 16},
        {**ENCODER, "model_type": "fnet"},
        {**ENCODER, "model_type": "nystromformer"},
        {**ENCODER, "model_type": "yoso"},
        BIG_BIRD,
    ],
    ids=lambda config: config["model_type"],
)
def test_a_model_that_sees_padding_is_refused_with_one_message(tmp_path, config):
    with pytest.raises(UserError) as caught:
        check_run(blueprint_of(tmp_path, config), own_ray=False)
    (mistake,) = caught.value.mistakes
    assert mistake.where == "teacher"
    assert f"{config['model_type']} sees padding" in mistake.what


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta", "modernbert", "mamba", "gpt2"])
def test_models_that_do_not_are_taken(tmp_path, kind):
    special = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
    own = {**ENCODER, **special, "model_type": kind}
    assert not list(reading_mistakes(blueprint_of(tmp_path, own)))


def test_big_bird_is_taken_where_it_reads_short_texts_alone(tmp_path):
    assert not list(reading_mistakes(blueprint_of(tmp_path, BIG_BIRD, max_tokens=28)))


@pytest.mark.parametrize(("most", "is_taken"), [(8, False), (30, True)])
def test_a_model_that_chooses_tokens_is_taken_where_it_reads_them_all(tmp_path, most, is_taken):
    """Which of equal ones it chooses depends on how long a batch is."""
    own = {**ENCODER, "model_type": "axk2", "index_topk": most}
    own |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    own |= {"v_head_dim": 8, "index_n_heads": 2, "index_head_dim": 16, "first_k_dense_replace": 2}
    found = list(reading_mistakes(blueprint_of(tmp_path, own, max_tokens=30)))
    chooses = [mistake for mistake in found if "reads only those tokens" in mistake.what]
    assert bool(chooses) != is_taken
    assert is_taken or chooses[0].hint.startswith("Lower teacher.max_tokens to 8")


def test_a_model_that_transformers_cannot_run_is_refused(tmp_path):
    config = {**ENCODER, "model_type": "modernbert", "num_attention_heads": 3, "pad_token_id": 0}
    (mistake,) = reading_mistakes(blueprint_of(tmp_path, config))
    assert "modernbert" in mistake.what


def test_a_model_that_reads_another_way_with_a_cache_cannot_generate_from_it(tmp_path):
    student = {"model_type": "roformer", "is_decoder": True, **ENCODER, "vocab_size": 300}
    sections = {"student": {"layers": None, "config": student}, "topology": {"runner": "local"}}
    (mistake,) = reading_mistakes(
        resolve(generative_config(tmp_path, "translation", "mistral", **sections))
    )
    assert mistake.where == "student"
    assert "roformer reads texts otherwise when it generates" in mistake.what


@pytest.mark.parametrize("model", ["mistral", "mamba", "lfm2", "t5", "bart"])
def test_what_is_generated_is_tried_too(tmp_path, model):
    student = {"layers": None, "config": {**TEACHERS["gpt2"], "vocab_size": 300}}
    config = generative_config(tmp_path, "translation", model, student=student)
    assert not list(reading_mistakes(resolve(config)))


def test_a_causal_model_that_is_not_known_as_one_reads_no_labels_that_stand_first(
    tmp_path, monkeypatch
):
    gpt2 = {**ENCODER, "model_type": "gpt2"}
    blueprint = blueprint_of(tmp_path, gpt2).altered(task={"name": "relation"})
    assert not list(reading_mistakes(blueprint))
    monkeypatch.setattr("tsarch.models.causality.is_causal", lambda hf: False)
    (mistake,) = reading_mistakes(blueprint)
    assert "gpt2 sees earlier tokens only, which its config doesn't tell" in mistake.what


def test_a_causal_model_in_ner_is_noted(tmp_path):
    blueprint = blueprint_of(tmp_path, {**ENCODER, "model_type": "gpt2"})
    (note,) = run_notes(blueprint)
    assert note.startswith("teacher: gpt2 sees earlier tokens only")


def test_the_trial_leaves_random_numbers_alone(tmp_path):
    torch.manual_seed(3)
    list(reading_mistakes(blueprint_of(tmp_path, {**ENCODER, "model_type": "bert"})))
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(2))


def test_a_large_model_is_tried_with_one_layer_of_each_kind_and_two_of_the_first(tmp_path):
    wide = {
        "vocab_size": 30522,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_attention_heads": 4,
        "num_hidden_layers": 12,
        "num_key_value_heads": 4,
        "layer_types": [*["conv"] * 8, *["full_attention"] * 4],
        "model_type": "lfm2",
    }
    backbone = small_backbone(blueprint_of(tmp_path, wide).stages[Stage.TEACHER])
    assert backbone is not None
    assert backbone.model.config.layer_types == ["conv", "conv", "full_attention"]


def test_of_a_model_that_is_too_large_a_note_says_so(tmp_path):
    huge = {**ENCODER, "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672}
    blueprint = blueprint_of(tmp_path, {**huge, "num_attention_heads": 64})
    (note,) = reading_notes(blueprint)
    assert note.startswith("teacher is too large to try out")
    assert note in run_notes(blueprint)
    assert not list(reading_mistakes(blueprint))


def convolving() -> TeacherModel:
    """A model that sees padding."""
    raw = {**ENCODER, "model_type": "convbert", "vocab_size": 40, "embedding_size": 16}
    backbone = build_backbone(backbone_config(None, raw, 0.0, 0.0), None, partial(torch_seed, 0))
    return TeacherModel(backbone, 24, 3, 0.0).eval()  # with a projection, whose bias isn't 0


MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


def differing_embeds(width: int) -> tuple[Tensor, Tensor]:
    """Two batches that differ in padding alone."""
    one = torch.randn(2, 5, width)
    return one, torch.where(MASK.unsqueeze(-1) == 0, torch.randn(2, 5, width), one)


def test_what_stands_at_padding_is_nothing_and_gets_no_gradient():
    model = convolving()
    one, other = (own.requires_grad_() for own in differing_embeds(24))
    first, second = model(one, MASK)[0], model(other, MASK)[0]
    assert torch.equal(first, second)
    first.sum().backward()
    assert one.grad is not None
    assert not one.grad[0, 3:].any()
    assert one.grad[0, :3].any()


def test_a_students_padding_is_nothing_whatever_stands_for_no_teacher():
    teacher = convolving()
    raw = {**ENCODER, "model_type": "convbert", "vocab_size": 40, "embedding_size": 16}
    backbone = build_backbone(backbone_config(None, raw, 0.0, 0.0), None, partial(torch_seed, 0))
    student = StudentModel(backbone, 24, teacher.hidden_width, 3, 0.0, learned_no_teacher=True)
    said = []
    for own, vector in zip(differing_embeds(24), (0.0, 1.0), strict=True):
        with torch.no_grad():
            student.eval().no_teacher.fill_(vector)
            places = torch.where(MASK == 0, -1, 0)
            said.append(student([own], [MASK], torch.ones(1, teacher.hidden_width), [places])[0])
    assert torch.equal(*said)


def test_padding_of_sources_and_targets_is_nothing():
    config = backbone_config(None, BART, 0.0, 0.0)
    backbone = build_backbone(config, None, partial(torch_seed, 0))
    seen = []
    for part in (backbone.model.encoder, backbone.model.decoder):
        part.register_forward_pre_hook(
            lambda _, __, given: seen.append(given["inputs_embeds"]), with_kwargs=True
        )
    model = TeacherModel(backbone, 16, None, 0.0)
    model(torch.randn(2, 5, 16), MASK, torch.tensor([1, 3]))
    source, target = seen
    assert not source[0, 1:].any()
    assert source[1].all()
    assert not target[1, 2:].any()
