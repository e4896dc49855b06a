"""Memory formula and the checks before training: states that can't fit, batches too small."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers import QUICKSTART_MODEL, tiny_blueprint, tiny_config, tiny_raw
from tests.test_cli import train
from tsarch.blueprint import resolve
from tsarch.checkpoint.cut import Cut
from tsarch.config import Config
from tsarch.errors import UserError
from tsarch.planning import capacity
from tsarch.planning.capacity import (
    Feeding,
    check_capacity,
    rank_need,
    rank_needs,
)
from tsarch.planning.memory import StageSize, States, activation_bytes, num_moments, table_states
from tsarch.planning.memory import zero_states as states_of
from tsarch.planning.step_size import few_steps_notes
from tsarch.prepare import Prepared, prepare_data
from tsarch.rank.local_crew import LocalCrew
from tsarch.rank.rank import Rank
from tsarch.rank.wiring import local_wiring
from tsarch.stage.build import build_model, outline_model
from tsarch.stage.engine import trained_parameters
from tsarch.topology import STAGES, Stage

PARAMETERS = 7_500_000_000
GB = 10**9


@pytest.mark.parametrize(
    ("zero_stage", "expected_gb"),
    [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)],
)
def test_the_papers_example(zero_stage, expected_gb):
    """Rajbhandari et al. 2020, figure 1: Ψ = 7.5 billion, N = 64, K = 12."""
    states = states_of(StageSize(PARAMETERS, PARAMETERS, 64, zero_stage, "bf16", 2))
    assert states.total / GB == pytest.approx(expected_gb, rel=0.02)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_one_replica_shards_nothing_and_frozen_parameters_have_only_weights(zero_stage):
    copy = 4 if zero_stage > 0 else 0
    assert states_of(StageSize(100, 100, 1, zero_stage, "fp32", 2)) == States(
        400, 400, (8 + copy) * 100
    )
    assert states_of(StageSize(100, 0, 1, zero_stage, "bf16", 2)) == States(200, 0, 0)


def test_optimizers_and_the_table():
    assert [num_moments("adamw", 0.0), num_moments("sgd", 0.9), num_moments("sgd", 0.0)] == [
        2,
        1,
        0,
    ]
    assert table_states(1000, 8, 50, 2) == States(32_000, 1_600, 3_200)
    assert table_states(1000, 8, 0, 2) == States(32_000, 0, 0)
    # 34 bytes per layer, token and unit of width in 16 bits (Korthikanti et al. 2022).
    assert activation_bytes(2, 8, 10, "bf16") == 34 * 2 * 8 * 10


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"student": {"layers": None, "model": QUICKSTART_MODEL, "no_teacher": "learned"}},
        {"teacher": {"freeze": "all_but_top_k", "top_k": 1}},
        {"teacher": {"lora": {}}, "student": {"lora": {"rank": 2}}},
        {"teacher": {"activation_checkpointing": True}},
    ],
)
def test_parameters_are_counted_without_weights(tmp_path, sections):
    blueprint = tiny_blueprint(tmp_path, **sections)
    for stage in STAGES:
        built, outline = (make(blueprint, stage, 9) for make in (build_model, outline_model))
        shapes = {n: (p.shape, p.requires_grad) for n, p in built.module.named_parameters()}
        assert {n: (p.shape, p.requires_grad) for n, p in outline.named_parameters()} == shapes
        assert all(p.is_meta for p in outline.parameters())


@pytest.mark.parametrize("stage", STAGES)
def test_of_a_model_with_adapters_only_what_trains_has_gradients(tmp_path, stage):
    blueprint = tiny_blueprint(
        tmp_path,
        **{stage.name: {"lora": {"rank": 2}}},
        topology={"runner": "local", "threads": 1},
    )
    data = prepare_data(blueprint)
    parts = Rank(blueprint, data, local_wiring(blueprint)).parts
    trained = sum(p.numel() for _, p in trained_parameters(parts.engines[stage].module))
    states = rank_need(blueprint, stage, data).states
    assert states.gradients == 4 * trained < states.weights / 5
    assert states.weights == 4 * parts.num_parameters[stage.name]


@pytest.fixture
def prepared(tmp_path) -> Prepared:
    return prepare_data(tiny_blueprint(tmp_path))


def with_replicas(tmp_path, teacher: int, student: int, **sections) -> Config:
    topology = {"teacher": {"replicas": teacher}, "student": {"replicas": student}}
    return tiny_config(tmp_path, topology=topology, **sections)


def test_what_fits_is_described(tmp_path, prepared):
    notes = check_capacity(tiny_blueprint(tmp_path), prepared, own_ray=True)
    assert "memory of a rank: teacher 0.0" in notes[0]
    need = rank_need(tiny_blueprint(tmp_path), Stage.TEACHER, prepared)
    assert need.states == States(need.states.weights, need.states.weights, 2 * need.states.weights)
    assert need.table.weights == 4 * 30522 * 32


def test_states_beyond_the_memory_are_refused(tmp_path, prepared, monkeypatch):
    monkeypatch.setattr(capacity, "device_memory", lambda config: 10_000_000)
    with pytest.raises(UserError) as caught:
        check_capacity(tiny_blueprint(tmp_path), prepared, own_ray=True)
    text = str(caught.value)
    assert "memory: 2 ranks need 0.0 GB for weights, gradients, optimizer state" in text
    # Ranks that may have to go back keep two copies.
    assert "The largest part is the copies for checkpoints" in text
    assert "zero_stage 3" in text
    without = {"checkpoint": {"in_memory_every_steps": None}}
    with pytest.raises(UserError, match="The largest part is the tied table"):
        check_capacity(resolve(tiny_config(tmp_path, **without)), prepared, own_ray=True)
    # On a cluster nobody knows the memory here.
    check_capacity(tiny_blueprint(tmp_path), prepared, own_ray=False)


def test_a_gpu_holds_one_rank(tmp_path, prepared, monkeypatch):
    monkeypatch.setattr(capacity, "choose_device", lambda _: torch.device("cuda"))
    config = tiny_config(tmp_path)
    need = rank_need(resolve(config), Stage.TEACHER, prepared).total
    monkeypatch.setattr(capacity, "device_memory", lambda config: need)
    check_capacity(resolve(config), prepared, own_ray=True)
    monkeypatch.setattr(capacity, "device_memory", lambda config: need - 1)
    with pytest.raises(UserError, match=r"a teacher rank needs .* the smallest GPU has"):
        check_capacity(resolve(config), prepared, own_ray=True)


@pytest.mark.parametrize(
    ("optimizer", "frozen"), [("adamw", False), ("sgd", False), ("adamw", True)]
)
def test_the_copy_for_checkpoints_is_counted(tmp_path, optimizer, frozen):
    blueprint = tiny_blueprint(
        tmp_path,
        topology={"runner": "local", "device": "cpu"},
        optimizer={"name": optimizer, "momentum": 0.9},
        embedding={"frozen": frozen},
        schedule={"name": "sequential"},
    )
    crew = LocalCrew(blueprint, data := prepare_data(blueprint))
    list(crew.train(0, 1))
    (stall,) = crew.take_checkpoint(Cut(str(tmp_path / "checkpoints"), 1))
    crew.checkpoint_written(wait=True)
    counted = sum(need.copy for need in rank_needs(blueprint, data).values())
    assert counted == pytest.approx(stall.nbytes, rel=0.02)


def test_the_copies_for_checkpoints_take_memory_of_the_host(tmp_path, prepared, monkeypatch):
    config = tiny_config(tmp_path)
    needs = rank_needs(resolve(config), prepared).values()
    states, copies = sum(need.total for need in needs), sum(need.copy for need in needs)
    monkeypatch.setattr(capacity, "host_memory", lambda: states + copies)
    check_capacity(resolve(config), prepared, own_ray=True)
    monkeypatch.setattr(capacity, "host_memory", lambda: states + copies - 1)
    with pytest.raises(UserError, match=r"the tied table and the copies for checkpoints"):
        check_capacity(resolve(config), prepared, own_ray=True)
    monkeypatch.setattr(capacity, "choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(capacity, "device_memory", lambda config: states)
    check_capacity(resolve(config), prepared, own_ray=True)
    monkeypatch.setattr(capacity, "host_memory", lambda: copies - 1)
    with pytest.raises(UserError, match=r"of this machine's own memory"):
        check_capacity(resolve(config), prepared, own_ray=True)


def test_what_is_offloaded_is_on_the_host_and_not_on_the_gpu(tmp_path, prepared):
    teacher = {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}
    need = rank_need(
        tiny_blueprint(tmp_path, topology={"teacher": teacher}), Stage.TEACHER, prepared
    )
    assert need.on_gpu == need.states.gradients + need.table.total
    assert need.on_host("cuda") == need.copy + need.states.weights + need.states.optimizer
    assert need.on_host("cpu") == need.copy + need.total


def test_a_batch_that_feeds_no_replica_is_refused(tmp_path, prepared):
    config = with_replicas(tmp_path, 40, 1, schedule={"micro_batches": 2})
    with pytest.raises(UserError) as caught:
        check_capacity(resolve(config), prepared, own_ray=False)
    text = str(caught.value)
    most = Feeding.of(resolve(config), prepared.splits["train"]).contexts.max()
    assert f"a step of 384 tokens holds at most {most} contexts" in text
    assert "40 teacher replicas × 2 micro-batches need 80" in text
    assert "topology.teacher.replicas or schedule.micro_batches" in text


def test_a_batch_of_few_windows_says_so(tmp_path, prepared):
    config = with_replicas(tmp_path, 40, 1, data={"batch_windows": 5})
    feeding, by_tokens = (
        Feeding.of(own, prepared.splits["train"])
        for own in (resolve(config), tiny_blueprint(tmp_path))
    )
    assert all(feeding.windows[feeding.contexts > 1] <= 5)
    assert feeding.windows.max() < by_tokens.windows.max()
    with pytest.raises(UserError, match=r"Raise data.batch_tokens and batch_windows, or lower"):
        check_capacity(resolve(config), prepared, own_ray=False)


def notes_on_steps(tmp_path, prepared, **sections):
    own = resolve(tiny_config(tmp_path, **sections))
    notes = check_capacity(own, prepared, own_ray=False)
    return [note for note in notes if "batch_windows" in note]


def test_few_steps_of_many_windows_are_told_with_how_many_there_could_be(tmp_path, prepared):
    large = {"batch_tokens": 4096}
    (note,) = notes_on_steps(tmp_path, prepared, data=large)
    own, smaller = (
        Feeding.of(tiny_blueprint(tmp_path, data=data), prepared.splits["train"])
        for data in (large, {**large, "batch_windows": 16})
    )
    assert f"the run has {2 * len(own.windows)} steps" in note
    assert f"of {own.windows.mean():.0f} windows" in note
    assert note.endswith(f"data.batch_windows=16 there are {2 * len(smaller.windows)}")
    assert not notes_on_steps(tmp_path, prepared, data={**large, "batch_windows": 16})
    assert not notes_on_steps(tmp_path, prepared, data=large, schedule={"epochs": 400})
    assert not notes_on_steps(tmp_path, prepared, data=large, schedule={"max_steps": 9})


def test_contexts_of_many_windows_are_no_reason_for_smaller_steps(tmp_path, prepared):
    train = prepared.splits["train"]
    one = replace(train, window_offsets=train.window_offsets * 30)
    assert few_steps_notes(tiny_blueprint(tmp_path), one, train.num_contexts) == []


def test_too_few_windows_name_the_student(tmp_path, prepared):
    with pytest.raises(UserError, match=r"windows of this data, but 300 student replicas"):
        check_capacity(resolve(with_replicas(tmp_path, 1, 300)), prepared, own_ray=False)


def test_steps_that_leave_replicas_idle_are_told(tmp_path, prepared):
    counts = Feeding.of(tiny_blueprint(tmp_path), prepared.splits["train"]).contexts
    most = int(counts.max())
    assert counts.min() < most
    notes = check_capacity(resolve(with_replicas(tmp_path, most, 1)), prepared, own_ray=False)
    share = (counts < most).mean()
    assert f"note: {share:.0%} of the steps hold fewer than {most} contexts" in notes[1]


def test_the_command_line_refuses_before_ray_starts(tmp_path, capsys):
    raw = tiny_raw(tmp_path, schedule={"micro_batches": 200})
    status, text = train(tmp_path, raw, capsys)
    assert status == 2
    assert "1 teacher replicas × 200 micro-batches need 200" in text
    assert "1 student replicas × 200 micro-batches need 200" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_line_refuses_a_model_beyond_the_memory(tmp_path, capsys):
    raw = tiny_raw(tmp_path)
    raw["teacher"]["config"].update(hidden_size=65536, intermediate_size=262144)
    raw["teacher"]["config"].update(num_hidden_layers=96)
    status, text = train(tmp_path, raw, capsys)
    assert status == 2
    assert "The largest part is the copies for checkpoints" in text
