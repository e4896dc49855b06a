"""States that leave a teacher, and enter a student, between two layers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import tiny_config, tiny_raw
from tests.test_models import config_of
from tsarch.blueprint import resolve
from tsarch.config_loading import parse_config
from tsarch.errors import UserError
from tsarch.model_folder import saved_config
from tsarch.models.backbone import build_backbone
from tsarch.models.boundary import can_be_entered
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.models.unpadded import Unpadded
from tsarch.planning.preflight import check_run
from tsarch.seeding import torch_seed
from tsarch.topology import Stage

SEED_OF = partial(torch_seed, 0)
ASKED: dict[str, Any] = {
    "task": {"name": "qa", "query": "student"},
    "distillation": {"weight": 0.0},
    "teacher": {"boundary_layer": 2},
    "student": {"layers": [0, 2], "shortcut": False},
}


def models(
    kind: str, boundary: int, unpadded: bool, first_position: int = 0
) -> tuple[Any, TeacherModel, StudentModel]:
    """A backbone, and a teacher and a student that are copies of it."""
    backbones = [build_backbone(config_of(kind), None, SEED_OF) for _ in range(3)]
    width = backbones[0].embedding_width
    teacher = TeacherModel(
        backbones[1], width, 2, 0.0, boundary_layer=boundary, first_position=first_position
    )
    hidden = backbones[2].hidden_width
    student = StudentModel(backbones[2], width, hidden, 2, 0.0, boundary_layer=boundary)
    if unpadded:
        teacher.unpadded = Unpadded(teacher.backbone)
        student.unpadded = Unpadded(student.backbone)
    return backbones[0].model.eval(), teacher.eval(), student.eval()


def states_before(model: Any, layer: int, embeds: Tensor, **options: Tensor) -> Tensor:
    """(1, tokens, width) as transformers gives it."""
    states: Tensor = model(
        inputs_embeds=embeds, output_hidden_states=True, **options
    ).hidden_states[layer]
    return states


def layers_from(model: Any, layer: int, hidden: Tensor) -> Tensor:
    """What BERT's layers from one on make of (1, tokens, width)."""
    for own in model.encoder.layer[layer:]:
        hidden = own(hidden)
    return hidden


@pytest.mark.parametrize("unpadded", [False, True])
@pytest.mark.parametrize("boundary", [1, 3])
@torch.no_grad()
def test_upper_layers_read_together_what_lower_ones_have_read_apart(boundary, unpadded):
    """DeFormer's split, put together from the layers themselves."""
    torch.manual_seed(0)
    model, teacher, student = models("bert", boundary, unpadded)
    passage, questions = torch.randn(1, 6, 16), torch.randn(2, 3, 16)
    left, said = teacher(passage, torch.ones(1, 6, dtype=torch.long))
    torch.testing.assert_close(left, states_before(model, boundary, passage))
    assert torch.equal(said, teacher.head(model(inputs_embeds=passage).last_hidden_state))
    teacher.exit.is_end = True
    for _ in range(2):
        again, said = teacher(passage, torch.ones(1, 6, dtype=torch.long))
        assert torch.equal(again, left)
        assert said.shape == (1, 6, 0), "the layers above haven't run"
    # One question has two tokens and all of the passage, the other three and a part, padded.
    embeds = torch.cat([questions, torch.zeros(2, 5, 16)], 1)
    places = torch.tensor([[-1, -1, 0, 1, 2, 3, 4, 5], [-1, -1, -1, 1, 2, 3, -1, -1]])
    mask = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])
    (found,) = student([embeds], [mask], left[0], [places])
    for row, (asked, fed) in enumerate(((2, slice(0, 6)), (3, slice(1, 4)))):
        own = states_before(model, boundary, questions[row : row + 1, :asked])
        hidden = layers_from(model, boundary, torch.cat([own, left[:, fed]], 1))
        wanted = student.head(hidden)[0]
        torch.testing.assert_close(found[row, : len(wanted)], wanted)


@pytest.mark.parametrize("unpadded", [False, True])
@pytest.mark.parametrize(("kind", "first"), [("bert", 5), ("roberta", 7)])
@torch.no_grad()
def test_a_text_may_have_positions_behind_what_is_asked(kind, first, unpadded):
    """RoBERTa counts positions from behind the padding's."""
    torch.manual_seed(0)
    model, teacher, _ = models(kind, 1, unpadded, first_position=5)
    embeds, mask = torch.randn(2, 6, 16), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    places = torch.arange(first, first + 6)[None].expand(2, 6)
    wanted = states_before(model, 1, embeds, attention_mask=mask, position_ids=places)
    left, _ = teacher(embeds, mask)
    torch.testing.assert_close(left[mask.bool()], wanted[mask.bool()])


@pytest.mark.parametrize("unpadded", [False, True])
@torch.no_grad()
def test_a_student_without_states_reads_all_with_all_its_layers(unpadded):
    torch.manual_seed(0)
    model, _, student = models("roberta", 2, unpadded)
    embeds, nowhere = torch.randn(2, 7, 16), torch.full((2, 7), -1)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    (found,) = student([embeds], [mask], torch.zeros(1, 16), [nowhere])
    wanted = student.head(model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state)
    torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()])


@torch.no_grad()
def test_marks_inside_a_window_are_read_the_same_way_padded_and_not():
    torch.manual_seed(0)
    embeds, states = torch.randn(2, 9, 12), torch.randn(12, 16)  # ELECTRA embeds in fewer
    places = torch.tensor([[4, -1, 5, 6, -1, 7, 8, -1, 9], [0, 1, 2, 3, 4, -1, -1, -1, -1]])
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    other = torch.randn(1, 4, 12), torch.ones(1, 4, dtype=torch.long), torch.tensor([[3, -1, 4, 5]])
    found = []
    for unpadded in (False, True):
        _, _, student = models("electra", 2, unpadded)
        groups = [[own, more] for own, more in zip((embeds, mask, places), other, strict=True)]
        found.append(student(groups[0], groups[1], states, groups[2]))
    torch.testing.assert_close(found[0][0][mask.bool()], found[1][0][mask.bool()])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_gradients_reach_states_and_lower_layers_alike():
    """Padded and not; what a state stands for gets none in the lower layers."""
    embeds, mask = torch.randn(1, 5, 16), torch.ones(1, 5, dtype=torch.long)
    places, grads = torch.tensor([[-1, -1, 0, 1, 2]]), []
    for unpadded in (False, True):
        _, _, student = models("bert", 2, unpadded)
        inputs, states = embeds.clone().requires_grad_(), torch.ones(3, 16).requires_grad_()
        student([inputs], [mask], states, [places])[0].square().sum().backward()
        assert inputs.grad is not None
        assert states.grad is not None
        assert inputs.grad[0, :2].abs().min() > 0
        assert inputs.grad[0, 2:].abs().max() == 0
        lower = student.backbone.encoder.layer[0].output.dense.weight.grad
        grads.append((inputs.grad, states.grad, lower))
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    ("kind", "can"), [("bert", True), ("roberta", True), ("electra", True), ("modernbert", False)]
)
def test_architectures_are_tried_out(kind, can):
    assert can_be_entered(config_of(kind)) == can


def test_which_layers_of_a_student_are_below_the_boundary(tmp_path):
    config = tiny_config(tmp_path, **ASKED)
    assert config.student_boundary == 1
    stages = resolve(config).stages
    assert stages[Stage.TEACHER].boundary_layer == 2
    assert stages[Stage.STUDENT].boundary_layer == 1
    own = {**ASKED, "student": {**ASKED["student"], "layers": [2]}}
    (tmp_path / "other").mkdir()
    assert tiny_config(tmp_path / "other", **own).student_boundary == 0


def test_a_saved_run_knows_its_boundary(tmp_path):
    config = tiny_config(tmp_path, **ASKED)
    for stage, own in resolve(config).stages.items():
        own.architecture.built.save_pretrained(tmp_path / "model" / stage.value)
    saved = saved_config(config, tmp_path / "model")
    assert saved.student is not None
    assert saved.student.layers is None
    assert saved.student_boundary == 1


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"task": {"name": "ner", "query": "both"}}, "needs task.query: student"),
        ({"student": {"layers": [0, 1]}}, r"must have layers from teacher.boundary_layer \(2\) on"),
        ({"student": {"layers": [2, 0]}}, "and behind those below it"),
        ({"student": {"no_teacher": "learned"}}, "no_teacher: learned can't be asked"),
        ({"student": {"bridge_scale": 0.0}}, "bridge_scale: 0 can't be asked"),
        ({"student": {"layers": None, "model": "x"}}, r"needs student.layers, or student.bound"),
        ({"teacher": {"boundary_layer": None}, "student": {"boundary_layer": 1}}, "needs teacher."),
        ({"teacher": {"boundary_layer": None, "first_position": 4}}, "needs teacher.boundary"),
    ],
)
def test_boundaries_that_make_no_sense_are_refused(tmp_path, sections, what):
    own = {name: {**ASKED.get(name, {}), **values} for name, values in sections.items()}
    with pytest.raises(UserError, match=what):
        tiny_config(tmp_path, **{**ASKED, **own})
    raw = tiny_raw(tmp_path, **{**ASKED, "task": {"name": "ner", "query": "both"}})
    with pytest.raises(UserError, match="needs both `teacher` and `student`"):
        parse_config({**raw, "student": None}, "tiny")


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"teacher": {"boundary_layer": 3}, "student": {"boundary_layer": 1}}, r"layers 0 … 2"),
        ({"student": {"boundary_layer": 2}}, r"layers 0 … 1"),
        ({"teacher": {"first_position": 999}}, r"behind teacher.first_position \(999\)"),
    ],
)
def test_layers_that_are_not_there_are_refused(tmp_path, sections, what):
    own = {name: {**ASKED.get(name, {}), **values} for name, values in sections.items()}
    with pytest.raises(UserError, match=what):
        check_run(resolve(tiny_config(tmp_path, **{**ASKED, **own})), own_ray=False)
