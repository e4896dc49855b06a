"""`joint` is one step on the sum of both losses, also through the hidden states."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import tiny_config
from tests.suites.equivalence import Case, comparable, local_rows, relative_difference
from tsarch.blueprint import resolve
from tsarch.errors import UserError
from tsarch.losses.token import cross_entropy
from tsarch.prepare import prepare_data
from tsarch.rank.rank import Rank
from tsarch.rank.wiring import local_wiring
from tsarch.topology import STAGES, Stage


def joint_config(tmp_path, teacher=None, frozen_table=False, **schedule):
    """One SGD step of rate 1 gives the gradient itself; clipping is off."""
    return tiny_config(
        tmp_path,
        schedule={"name": "joint", "epochs": 3, **schedule},
        optimizer={
            "name": "sgd",
            "clip_norm": 0.0,
            "teacher_learning_rate": 1.0,
            "student_learning_rate": 1.0,
            "embedding_learning_rate": 1.0,
            "weight_decay": 0.0,
        },
        learning_rate={"warmup": 0.0, "decay": "constant"},
        teacher=teacher or {},
        student={"alone_weight": 0.0, "teacher_dropout": 0.0},
        embedding={"frozen": frozen_table},
        distillation={"weight": 0.0},
        topology={"runner": "local", "device": "cpu"},
    )


def build(config) -> Rank:
    blueprint = resolve(config)
    return Rank(blueprint, prepare_data(blueprint), local_wiring(blueprint))


def weights(rank: Rank) -> dict[str, torch.Tensor]:
    found = {
        f"{stage}.{name}": parameter.detach().clone()
        for stage, engine in rank.parts.engines.items()
        for name, parameter in engine.module.named_parameters()
    }
    return {**found, "table": rank.parts.tied.table.values()}


def whole_gradient(rank: Rank) -> dict[str, torch.Tensor]:
    """Autograd on L in one graph, table, teacher, hidden states and student in one piece."""
    feed = rank.training.feed
    plan = feed.plan(0)
    teacher, student = (rank.parts.engines[stage].module for stage in STAGES)
    table = rank.parts.tied.table.values().requires_grad_()
    rows = table[torch.from_numpy(plan.token_ids)]
    part = feed.context_batch(0, 0, Stage.TEACHER, 0)
    own = feed.window_batches(0, 0, Stage.STUDENT, 0)
    hidden, logits = teacher(rows[torch.from_numpy(part.rows)], torch.from_numpy(part.mask))
    loss = cross_entropy(logits, torch.from_numpy(feed.labels(part.words))).sum()
    boundary = hidden.flatten(0, 1)[torch.from_numpy(part.outgoing[1])]
    outputs = student(
        [rows[torch.from_numpy(g.rows)] for g in own],
        [torch.from_numpy(g.mask) for g in own],
        boundary,
        [torch.from_numpy(g.boundary) for g in own],
    )
    for group, out in zip(own, outputs, strict=True):
        own_loss = cross_entropy(out, torch.from_numpy(feed.labels(group.words)))
        loss = loss + (own_loss * torch.from_numpy(group.weight).unsqueeze(1)).sum()
    named = {
        f"{s}.{n}": p for s in STAGES for n, p in rank.parts.engines[s].module.named_parameters()
    } | {"table": table}
    trained = {name: p for name, p in named.items() if p.requires_grad}
    grads = torch.autograd.grad(loss / plan.num_labels, list(trained.values()), allow_unused=True)
    return {name: g for name, g in zip(trained, grads, strict=True) if g is not None}


def check_one_step(config) -> set[str]:
    """A step must be the gradient of both losses in one graph; returns what it moved."""
    rank = build(config)
    before, wanted = weights(rank), whole_gradient(rank)
    rank.begin(0, 1, None)
    rank.advance(1)
    after = weights(rank)
    for name, gradient in wanted.items():
        if config.embedding.frozen and name == "table":
            continue
        step = before[name] - after[name]
        scale = max(float(gradient.abs().max()), 1e-3)
        assert float((step - gradient).abs().max()) < 2e-5 * scale + 1e-7, name
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_one_step_is_the_gradient_of_both_losses_in_one_graph(tmp_path):
    moved = check_one_step(joint_config(tmp_path))
    assert any(name.startswith("teacher.backbone") for name in moved)


@pytest.mark.parametrize("frozen_table", [False, True])
@pytest.mark.parametrize(
    "teacher",
    [{"lora": {}}, {"freeze": "all_but_head"}, {"lora": {}, "activation_checkpointing": True}],
    ids=lambda teacher: "+".join(teacher),
)
def test_gradients_flow_through_a_frozen_teacher(tmp_path, teacher, frozen_table):
    moved = check_one_step(joint_config(tmp_path, teacher, frozen_table))
    backbone = {name for name in moved if name.startswith("teacher.backbone")}
    # A of an adapter has no gradient yet, since B starts at zero.
    assert all(".lora_B." in name for name in backbone)
    assert bool(backbone) == ("lora" in teacher)
    assert ("table" in moved) != frozen_table
    assert {"teacher.head.linear.weight", "student.bridge.weight"} <= moved


def test_the_student_teaches_the_teacher_only_in_joint(tmp_path):
    steps = {}
    for name in ("joint", "overlapped"):
        rank = build(joint_config(tmp_path, name=name))
        before = weights(rank)
        rank.begin(0, 1, None)
        rank.advance(2)
        after = weights(rank)
        steps[name] = {n: after[n] - before[n] for n in before if n.startswith("teacher.backbone")}
    different = [n for n, step in steps["joint"].items() if not step.equal(steps["overlapped"][n])]
    assert len(different) > len(steps["joint"]) // 2


@pytest.mark.parametrize("in_flight", [2, 5])
def test_micro_batches_do_not_change_the_losses(tmp_path, in_flight):
    case = Case("joint", "sgd", (1, 1), (0, 0))
    one, many = (
        comparable(tiny_config(tmp_path, schedule={"epochs": 3, **schedule}), case, 10)
        for schedule in ({}, {"micro_batches": 4, "in_flight": in_flight})
    )
    assert relative_difference(local_rows(many, 10), local_rows(one, 10)) < 1e-6


def test_joint_with_an_alternation_is_refused(tmp_path):
    with pytest.raises(UserError, match="alternation must stay 1:1"):
        tiny_config(tmp_path, schedule={"name": "joint", "alternation": {"teacher_steps": 2}})
