"""A stage in which nothing trains: a generative teacher under `freeze: all_but_head`, whose head is
the tied table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.equal_losses import check_equal_losses
from tests.generative_configs import generative_config
from tests.helpers import tiny_config
from tests.test_read_once import tiny_split
from tsarch.blueprint import resolve
from tsarch.config import Config
from tsarch.feeds import batch_plan
from tsarch.launch.training import run_training
from tsarch.prepare import prepare_data
from tsarch.rank.local_crew import LocalCrew
from tsarch.stage.build import build_model
from tsarch.topology import STAGES, Stage


def frozen(folder: Path, model: str, **sections: Any) -> Config:
    topology = {"runner": "local", **sections.pop("topology", {})}
    return generative_config(
        folder,
        "translation",
        model,
        teacher={"freeze": "all_but_head"},
        topology=topology,
        **sections,
    )


@pytest.mark.parametrize("model", ["llama", "t5"])
@pytest.mark.parametrize("is_table_frozen", [False, True])
@pytest.mark.parametrize("schedule", ["sequential", "overlapped", "joint"])
def test_only_the_student_trains(tmp_path, model, is_table_frozen, schedule):
    config = frozen(
        tmp_path,
        model,
        embedding={"frozen": is_table_frozen},
        schedule={"name": schedule, "max_steps": 3},
        evaluation={"before": False},
        decoding={"max_texts": 1},
    )
    started = {stage: build_model(resolve(config), stage, None) for stage in STAGES}
    summary = run_training(config)
    assert summary["steps"] == 3
    model_folder = tmp_path / "run" / "model"
    after = {stage: load_file(model_folder / f"{stage}.safetensors") for stage in STAGES}
    for stage, own in after.items():
        before = started[stage].module.state_dict()
        is_same = all(torch.equal(value, before[name]) for name, value in own.items())
        assert is_same == (stage is Stage.TEACHER)
    table = load_file(model_folder / "embedding.safetensors")["weight"]
    assert torch.equal(table, started[Stage.TEACHER].table) == is_table_frozen


@pytest.mark.parametrize("made", [tiny_config, tiny_split])
@pytest.mark.parametrize("schedule", ["sequential", "overlapped", "joint"])
def test_states_that_never_change_are_computed_once(tmp_path, schedule, made):
    """Also those that leave between layers (`tiny_split`), beside the last ones for the head."""
    teacher = {"freeze": "all_but_head"}
    run = {"schedule": {"name": schedule, "micro_batches": 2}, "topology": {"runner": "local"}}
    config = made(tmp_path, teacher=teacher, embedding={"frozen": True}, **run)
    reports = {}
    for gigabytes in (1.0, 1e-4, 0.0):
        data = config.data.model_copy(update={"keep_states_gb": gigabytes})
        blueprint = resolve(config.model_copy(update={"data": data}))
        prepared = prepare_data(blueprint)
        epoch = batch_plan(blueprint, prepared.splits["train"]).epoch_starts[1]
        ticks = LocalCrew(blueprint, prepared).train(0, 2 * epoch)
        own = [r for reports in ticks for r in reports if r.stage == "teacher"]
        reports[gigabytes] = [r for r in own if r.step is not None]
    read = {g: [r.num_real for r in own] for g, own in reports.items()}
    assert read[1.0][:epoch] == read[0.0][:epoch]
    assert sum(read[1.0][epoch:]) == 0 < sum(read[1e-4][epoch:]) < sum(read[0.0][epoch:])
    for gigabytes in (1.0, 1e-4):
        for own, plain in zip(reports[gigabytes], reports[0.0], strict=True):
            assert own.losses.means == pytest.approx(plain.losses.means, rel=1e-5)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
def test_ranks_give_the_losses_of_one_process(tmp_path, crews):
    config = frozen(tmp_path, "llama", topology={"runner": "ray"})
    check_equal_losses(config, (2, 1), crews, num_steps=4)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 2)
def test_ranks_keep_the_same_states_and_draw_the_same_windows(tmp_path, crews):
    """Two epochs, so that states are kept; each window is fed or alone by chance."""
    config = tiny_config(
        tmp_path,
        teacher={"freeze": "all_but_head"},
        student={"fed_share": 0.4, "teacher_dropout": 0.0},
        embedding={"frozen": True},
        data={"batch_tokens": 768},
    )
    train = prepare_data(resolve(config)).splits["train"]
    epoch = batch_plan(resolve(config), train).epoch_starts[1]
    check_equal_losses(config, (2, 2), crews, num_steps=2 * epoch)
