"""Frozen teachers with adapters, activation checkpointing, and the checks of both."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.autograd.graph import save_on_cpu

from tests.helpers import local_crew, tiny_config
from tests.suites.equivalence import local_rows
from tsarch.blueprint import resolve
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.planning.preflight import check_run
from tsarch.rank.api import RankApi
from tsarch.run.saved_run import evaluate_run
from tsarch.stage.build import build_model
from tsarch.topology import Stage

LOCAL = {"runner": "local", "device": "cpu"}
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.1, "target_modules": ["query", "output.dense"]}


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"teacher": {"freeze": "all_but_head", "lora": {}}}, ["`freeze` must stay `none`"]),
        ({"student": {"lora": {"rank": 0}}}, ["student.lora.rank"]),
        ({"student": {"lora": {"target_modules": []}}}, ["student.lora.target_modules"]),
        (
            {
                "topology": {
                    "teacher": {"offload_optimizer": True, "offload_parameters": True},
                    "student": {"zero_stage": 2, "offload_parameters": True},
                }
            },
            [
                "topology.teacher.offload_optimizer: needs zero_stage 1, 2 or 3",
                "topology.teacher.offload_parameters: needs zero_stage 3",
                "topology.student.offload_parameters: needs zero_stage 3",
            ],
        ),
    ],
)
def test_combinations_that_cannot_be_are_refused_all_at_once(tmp_path, sections, expected):
    zero_0 = {"zero_stage": 0}
    if "topology" in sections:
        sections["topology"]["teacher"] = {**zero_0, **sections["topology"]["teacher"]}
    with pytest.raises(UserError) as caught:
        tiny_config(tmp_path, **sections)
    assert len(caught.value.mistakes) == len(expected)
    for text in expected:
        assert text in str(caught.value)


def test_unknown_layers_are_named_with_those_there_are(tmp_path):
    config = tiny_config(
        tmp_path,
        topology=LOCAL,
        teacher={"lora": {"target_modules": ["query", "q_proj", "LayerNorm"]}},
        student={"lora": {"target_modules": ["ery"]}},
    )
    with pytest.raises(UserError) as caught:
        check_run(resolve(config), own_ray=False)
    teacher, student = map(str, caught.value.mistakes)
    assert "teacher.lora.target_modules: no linear layer is called 'q_proj', 'LayerNorm'" in teacher
    assert "Linear layers of bert: dense, key, query, value." in teacher
    assert "student.lora.target_modules: no linear layer is called 'ery'" in student


def test_an_architecture_without_defaults_or_checkpointing_is_refused(tmp_path):
    config = tiny_config(
        tmp_path,
        topology=LOCAL,
        teacher={
            "lora": {},
            "activation_checkpointing": True,
            "config": {
                "model_type": "fnet",
                "vocab_size": 30522,
                "hidden_size": 32,
                "num_hidden_layers": 3,
                "intermediate_size": 64,
            },
        },
    )
    with pytest.raises(UserError) as caught:
        check_run(resolve(config), own_ray=False)
    assert "teacher.lora.target_modules: peft has no default for fnet" in str(caught.value)


def test_only_adapters_and_new_layers_train(tmp_path):
    config = tiny_config(tmp_path, teacher={"lora": LORA}, student={"lora": {}})
    for module in (
        build_model(resolve(config), Stage.TEACHER, 3).module,
        build_model(resolve(config), Stage.STUDENT, 3).module,
    ):
        names = {n for n, p in module.named_parameters() if p.requires_grad}
        adapters = {n for n in names if n.startswith("backbone.")}
        assert adapters
        assert all(".lora_" in name for name in adapters)
        assert "head.linear.weight" in names
    again, other = (
        build_model(resolve(c), Stage.TEACHER, 3).module.state_dict()
        for c in (
            config,
            config.model_copy(update={"run": config.run.model_copy(update={"seed": 1})}),
        )
    )
    one = build_model(resolve(config), Stage.TEACHER, 3).module.state_dict()
    (first, *_) = (name for name in one if ".lora_A." in name)
    assert torch.equal(one[first], again[first])
    assert not torch.equal(one[first], other[first])


@pytest.mark.slow
def test_a_run_with_adapters_is_read_back_from_its_folder(tmp_path):
    config = tiny_config(
        tmp_path,
        topology=LOCAL,
        teacher={"lora": LORA, "activation_checkpointing": True},
        student={"lora": {}},
        schedule={"epochs": 1},
    )
    crew = local_crew(config)
    (tmp_path / "before").mkdir()
    crew.ask(RankApi.save, tmp_path / "before")
    summary = run_training(config)
    run = tmp_path / "run"
    again = evaluate_run(run, "test").evaluation
    assert again.metrics == summary["after"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss_teacher"] < rows[0]["loss_teacher"]
    for stage in ("teacher", "student"):
        before = load_file(tmp_path / "before" / f"{stage}.safetensors")
        after = load_file(run / "model" / f"{stage}.safetensors")
        assert set(before) == set(after)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        backbone = {name for name in moved if name.startswith("backbone.")}
        assert backbone
        assert all(".lora_" in name for name in backbone)
        assert "head.linear.weight" in moved


@pytest.mark.parametrize("schedule", ["sequential", "overlapped", "joint"])
def test_computing_layers_again_changes_no_loss(tmp_path, schedule):
    """Dropout included: its random state is kept for the second time."""
    rows = []
    for again in (False, True):
        own = {"activation_checkpointing": again, "dropout": 0.2, "attention_dropout": 0.1}
        config = tiny_config(
            tmp_path,
            topology=LOCAL,
            teacher={**own, "lora": LORA} if schedule == "joint" else own,
            student=own,
            schedule={"name": schedule, "micro_batches": 3, "max_steps": 4},
        )
        rows.append(
            [
                {name: value for name, value in row.items() if name.startswith("loss_")}
                for row in local_rows(config, 4)
            ]
        )
    assert rows[0] == rows[1]


def test_offloaded_inputs_change_no_loss(tmp_path, monkeypatch):
    """On this CPU without pinned memory; each layer's input is moved once a pass."""
    moved, rows = [], []

    def unpinned(pin_memory: bool, device_type: str) -> save_on_cpu:
        assert pin_memory
        moved.append(device_type)
        return save_on_cpu()

    for offload in (False, True):
        own = {"activation_checkpointing": True, "offload_activations": offload, "dropout": 0.2}
        config = tiny_config(tmp_path, topology=LOCAL, teacher=own, schedule={"max_steps": 2})
        with monkeypatch.context() as patch:
            patch.setattr("transformers.modeling_utils.save_on_cpu", unpinned)
            if offload:
                patch.setattr("tsarch.stage.build.choose_device", lambda _: torch.device("cuda"))
            rows.append([row["loss_teacher"] for row in local_rows(config, 2)])
    assert rows[0] == rows[1]
    assert len(moved) == 3 * 2, "layers × steps"


def test_offloading_needs_inputs_that_are_kept(tmp_path):
    with pytest.raises(UserError, match="needs activation_checkpointing"):
        tiny_config(tmp_path, teacher={"offload_activations": True})
