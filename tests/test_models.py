"""Models: no table inside, chosen layers are the teacher's, widths may differ, freezing holds."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.helpers import tiny_blueprint, tiny_config, tiny_raw
from tsarch.blueprint import resolve
from tsarch.models.backbone import HollowEmbedding, backbone_config, build_backbone
from tsarch.models.heads import linear_map
from tsarch.seeding import torch_seed
from tsarch.stage.build import build_model
from tsarch.topology import STAGES, Stage

SEED_OF = partial(torch_seed, 0)

ARCHITECTURES = {
    "bert": {"num_attention_heads": 2, "intermediate_size": 32},
    "roberta": {"num_attention_heads": 2, "intermediate_size": 32},
    "electra": {"num_attention_heads": 2, "intermediate_size": 32, "embedding_size": 12},
    "distilbert": {"n_heads": 2, "hidden_dim": 32},
    "modernbert": {
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "pad_token_id": 0,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
}


def config_of(kind: str):
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "vocab_size": 50}
    raw = {"model_type": kind, **sizes, **ARCHITECTURES[kind]}
    return backbone_config(None, raw, dropout=0.0, attention_dropout=0.0)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_encoders_run_on_embeddings_and_hold_no_table(kind):
    backbone = build_backbone(config_of(kind), None, SEED_OF)
    assert isinstance(backbone.model.get_input_embeddings(), HollowEmbedding)
    width = backbone.embedding_width
    assert not [p for p in backbone.model.parameters() if tuple(p.shape) == (50, width)]
    embeds = torch.randn(2, 5, width)
    mask = torch.ones(2, 5, dtype=torch.long)
    output = backbone.model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
    assert output.shape == (2, 5, backbone.hidden_width)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_selected_layers_are_those_of_the_teacher(kind):
    torch.manual_seed(0)
    backbone = build_backbone(config_of(kind), None, SEED_OF)
    backbone.model.eval()
    same = build_backbone(config_of(kind), None, SEED_OF, [0, 1, 2, 3]).model.eval()
    fewer = build_backbone(config_of(kind), None, SEED_OF, [0, 3])
    assert fewer.model.config.num_hidden_layers == 2
    embeds = torch.randn(1, 6, backbone.embedding_width)
    with torch.no_grad():
        wanted = backbone.model(inputs_embeds=embeds).last_hidden_state
        assert torch.equal(same(inputs_embeds=embeds).last_hidden_state, wanted)
        short = fewer.model.eval()(inputs_embeds=embeds).last_hidden_state
    assert not torch.allclose(short, wanted)
    own = {p.data_ptr() for p in backbone.model.parameters()}
    assert not own & {p.data_ptr() for p in fewer.model.parameters()}, "copies, not views"


def test_the_bridge_starts_as_the_identity():
    x = torch.randn(3, 8)
    assert torch.equal(linear_map(8, 8)(x), x)
    assert linear_map(8, 5)(x).shape == (3, 5)
    assert torch.equal(linear_map(8, 8, 0.5)(x), x / 2)


def test_a_bridge_of_a_small_multiplier_starts_the_same_and_learns_slower(tmp_path):
    """AdamW's first step is the learning rate in every entry of the map: what a fed token is moved
    by is the multiplier times that."""
    hidden = torch.randn(5, 32)
    moved = {}
    for multiplier in (1.0, 0.125):
        section = {"bridge_scale": 0.5, "bridge_multiplier": multiplier}
        blueprint = tiny_blueprint(tmp_path, student=section)
        student = build_model(blueprint, Stage.STUDENT, 9).module
        before, _ = student._fed(hidden)
        torch.testing.assert_close(before[:-1], hidden / 2)
        optimizer = torch.optim.AdamW(student.bridge.parameters(), lr=1e-3, weight_decay=0.0)
        before.sum().backward()
        optimizer.step()
        moved[multiplier] = (student._fed(hidden)[0] - before).detach()
    torch.testing.assert_close(moved[0.125], moved[1.0] / 8, rtol=1e-3, atol=1e-6)


def student_section(width: int) -> dict:
    return {
        "layers": None,
        "config": {
            "model_type": "bert",
            "vocab_size": 30522,
            "hidden_size": width,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
    }


@pytest.mark.parametrize("init", ["teacher", "student"])
def test_widths_may_differ(tmp_path, init):
    blueprint = tiny_blueprint(tmp_path, student=student_section(16), embedding={"init": init})
    vocabulary, width = blueprint.table.shape
    assert width == (32 if init == "teacher" else 16)
    teacher, student = (build_model(blueprint, stage, 9) for stage in STAGES)
    tables = {"teacher": teacher.table, "student": student.table}
    assert tables[init].shape == (vocabulary, width)
    assert tables["student" if init == "teacher" else "teacher"] is None
    mask = torch.ones(1, 4, dtype=torch.long)
    hidden, logits = teacher.module(torch.randn(1, 4, width), mask)
    assert (hidden.shape, logits.shape) == ((1, 4, 32), (1, 4, 9))
    places = torch.tensor([[0, 2, -1]])
    out = student.module([torch.randn(1, 3, width)], [mask[:, :3]], hidden[0], [places])
    assert out[0].shape == (1, 3, 9)


def test_dropped_bridge_terms_leave_the_embedding_alone(tmp_path):
    config = tiny_config(tmp_path)
    student = build_model(resolve(config), Stage.STUDENT, 9).module.eval()
    embeds, mask = [torch.randn(1, 3, 32)], [torch.ones(1, 3, dtype=torch.long)]
    alone = [torch.full((1, 3), -1)]
    with torch.no_grad():
        one = student(embeds, mask, torch.randn(5, 32), alone)[0]
        other = student(embeds, mask, torch.randn(5, 32), alone)[0]
        none = student(embeds, mask, torch.empty(0, 32), alone)[0]
        fed = student(embeds, mask, torch.randn(5, 32), [torch.tensor([[0, 1, 2]])])[0]
    assert torch.equal(one, other)
    assert torch.equal(one, none)
    assert not torch.allclose(one, fed)


def test_the_shortcut_adds_its_own_reading_where_there_is_a_teacher(tmp_path):
    plain, with_shortcut = (
        build_model(
            tiny_blueprint(tmp_path, student={"bridge_scale": 0.0, "shortcut": shortcut}),
            Stage.STUDENT,
            9,
        ).module.eval()
        for shortcut in (False, True)
    )
    own = plain.state_dict()
    assert all(torch.equal(own[n], t) for n, t in with_shortcut.state_dict().items() if n in own)
    embeds, mask = [torch.randn(1, 3, 32)], [torch.ones(1, 3, dtype=torch.long)]
    hidden, places = torch.randn(5, 32), [torch.tensor([[4, -1, 1]])]
    with torch.no_grad():
        alone = plain(embeds, mask, hidden, [torch.full((1, 3), -1)])[0]
        fed = plain(embeds, mask, hidden, places)[0]
        shifted = with_shortcut(embeds, mask, hidden, places)[0]
        added = hidden[[4, 0, 1]] @ with_shortcut.shortcut.linear.weight.t()
    assert torch.equal(fed, alone), "a bridge of scale 0 starts as no teacher"
    assert torch.equal(shifted[0, 1], alone[0, 1])
    torch.testing.assert_close(shifted[0, [0, 2]], (alone[0] + added)[[0, 2]])


@pytest.mark.parametrize("width", [32, 24])
def test_the_shortcut_starts_as_the_teachers_head(tmp_path, width):
    config = tiny_config(tmp_path)
    if width != 32:  # the teacher reads the student's table through a projection
        own = {**tiny_raw(tmp_path)["teacher"]["config"], "hidden_size": width}
        student = {"layers": None, "config": own}
        config = tiny_config(tmp_path, student=student, embedding={"init": "student"})
    head = build_model(resolve(config), Stage.TEACHER, 9).module.head.state_dict()
    shortcut = build_model(resolve(config), Stage.STUDENT, 9).module.shortcut.state_dict()
    assert set(head) == set(shortcut) == {"linear.weight", "linear.bias"}
    assert all(torch.equal(shortcut[name], value) for name, value in head.items())


@pytest.mark.parametrize(
    ("freeze", "top_k", "wanted"),
    [
        ("none", 0, {"layer.0", "layer.1", "layer.2", "embeddings", "head"}),
        ("all_but_top_k", 1, {"layer.2", "head"}),
        ("all_but_head", 0, {"head"}),
    ],
)
def test_freezing(tmp_path, freeze, top_k, wanted):
    config = tiny_config(tmp_path, teacher={"freeze": freeze, "top_k": top_k})
    trained = [
        n
        for n, p in build_model(resolve(config), Stage.TEACHER, 9).module.named_parameters()
        if p.requires_grad
    ]
    parts = ("layer.0", "layer.1", "layer.2", "embeddings", "head")
    assert {part for part in parts if any(part in name for name in trained)} == wanted


def test_weights_are_a_function_of_the_seed(tmp_path):
    config = tiny_config(tmp_path)
    first, again = (
        build_model(resolve(config), Stage.STUDENT, 9),
        build_model(resolve(config), Stage.STUDENT, 9),
    )
    other = build_model(tiny_blueprint(tmp_path, run={"seed": 1}), Stage.STUDENT, 9)
    state = first.module.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in again.module.state_dict().items())
    assert any(not torch.equal(t, state[n]) for n, t in other.module.state_dict().items())
