"""The whole run in one process: files, metrics, best weights, and what the losses must obey."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import local_crew, tiny_blueprint, tiny_config
from tsarch.blueprint import resolve
from tsarch.launch.training import run_training
from tsarch.planning import arithmetic
from tsarch.rank.api import RankApi
from tsarch.rank.local_crew import LocalCrew
from tsarch.run.evaluate import selection_score
from tsarch.run.saved_run import evaluate_run
from tsarch.stage.build import build_model
from tsarch.stage.engine import LocalEngine
from tsarch.tasks.registry import make_task
from tsarch.topology import Stage


def losses(folder: Path, name: str = "loss_teacher") -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [row[name] for row in rows]


def local(tmp_path: Path, name: str = "run", **sections):
    sections.setdefault("topology", {}).update(runner="local")
    sections["run"] = {"folder": str(tmp_path / name), **sections.get("run", {})}
    return tiny_config(tmp_path, **sections)


def test_a_run_writes_all_its_files_and_evaluates_again(tmp_path, capsys):
    config = local(tmp_path)
    summary = run_training(config, timings=True)
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "evaluations.jsonl",
        "errors.json",
        "report.html",
        "tensorboard",
        "summary.json",
        "model",
        "checkpoints",
        "logs",
    }
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    for key in (
        "task",
        "schedule",
        "teacher",
        "student",
        "before",
        "after",
        "steps",
        "wall_s",
        "train_s",
        "tokens_per_s",
        "stage_busy_s",
        "bubble_fraction",
        "link_bytes_per_step",
        "tied_bytes_per_step",
        "tied_max_abs_diff",
        "peak_memory_bytes",
        "restarts",
    ):
        assert key in summary, key
    assert set(summary["after"]) == {"teacher", "student", "joint", "student_alone"}
    assert summary["steps"] == len(losses(folder)) > 4
    assert losses(folder)[-1] < losses(folder)[0]
    weights = load_file(folder / "model" / "teacher.safetensors")
    assert any(name.startswith("head.") for name in weights)
    again = evaluate_run(folder, "test").evaluation
    assert again.metrics == summary["after"]
    out = capsys.readouterr().out
    assert "student_alone" in out
    assert "tokens/s" in out
    assert f"report: {folder / 'report.html'}" in out
    timings = summary["timings"]
    assert 0 < timings["first_step_start_s"] < timings["first_step_end_s"] < timings["total_s"]
    assert sum(timings["phases_s"].values()) == pytest.approx(timings["total_s"], rel=0.01)
    assert re.search(r"measuring the test split before training .* \d+\.\d\d", out)
    assert len(list((tmp_path / "cache" / "checks").iterdir())) == 5, "of the run and of evaluating"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run_training(local(tmp_path, name, run={"seed": seed}, schedule={"max_steps": 3}))
    a, b, c = (losses(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["sequential", "overlapped"])
def test_micro_batches_do_not_change_the_losses(tmp_path, schedule):
    for m in (1, 3):
        section = {"name": schedule, "micro_batches": m, "max_steps": 5}
        run_training(local(tmp_path, f"m{m}", schedule=section, optimizer={"name": "sgd"}))
    for name in ("loss_teacher", "loss_student", "loss_student_alone", "loss_distillation"):
        one, three = losses(tmp_path / "m1", name), losses(tmp_path / "m3", name)
        torch.testing.assert_close(torch.tensor(three), torch.tensor(one), rtol=1e-6, atol=0)


def crew_after_a_step(tmp_path: Path, **sections) -> tuple[LocalCrew, dict[str, float]]:
    """And the losses of that step."""
    config = local(tmp_path, schedule={"max_steps": 1}, **sections)
    crew = local_crew(config)
    means: dict[str, float] = {}
    for reports in crew.train(0, 1):
        for report in reports:
            means |= report.losses.means
    return crew, means


def test_distillation_is_for_the_passes_that_it_is_asked_for(tmp_path):
    """Terms of the first step, before any weight has changed."""
    found = {}
    for passes in ("all", "fed", "alone"):
        section = {"weight": 0.5, "passes": passes}
        found[passes] = crew_after_a_step(tmp_path, distillation=section)[1]["distillation"]
    assert min(found.values()) > 0.0
    assert found["all"] == pytest.approx(found["fed"] + found["alone"], rel=1e-6)


def test_a_fed_pass_of_little_weight_still_trains_its_shortcut_at_full_speed(tmp_path):
    """AdamW's first step has the rate's length, whatever the gradient's."""
    shortcuts, heads = [], []
    for weight in (1.0, 0.05):
        student = {"fed_weight": weight, "teacher_dropout": 0.0, "alone_weight": 1.0}
        crew, _ = crew_after_a_step(tmp_path, student=student)
        crew.ask(RankApi.save, tmp_path)
        state = load_file(tmp_path / "student.safetensors")
        config = local(tmp_path, student=student)
        before = build_model(
            resolve(config), Stage.STUDENT, len(state["head.linear.bias"])
        ).module.state_dict()
        shortcuts.append(state["shortcut.linear.weight"] - before["shortcut.linear.weight"])
        heads.append(state["head.linear.weight"] - before["head.linear.weight"])
    # But for AdamW's epsilon, which only tiny gradients feel.
    torch.testing.assert_close(shortcuts[0], shortcuts[1], rtol=0.1, atol=1e-6)
    assert (heads[0] - heads[1]).abs().max() > heads[0].abs().max() / 10


@pytest.mark.slow
def test_schedules_differ_only_by_one_late_table_update(tmp_path):
    """With a frozen table nothing is late, so both schedules give the same losses."""
    for schedule in ("sequential", "overlapped"):
        for frozen in (True, False):
            config = local(
                tmp_path,
                f"{schedule}-{frozen}",
                schedule={"name": schedule, "max_steps": 4},
                embedding={"frozen": frozen},
            )
            run_training(config)
    assert losses(tmp_path / "sequential-True") == losses(tmp_path / "overlapped-True")
    moving = [losses(tmp_path / f"{s}-False") for s in ("sequential", "overlapped")]
    assert moving[0][0] == moving[1][0]
    assert moving[0][1:] != moving[1][1:]


@pytest.mark.parametrize(("m", "n"), [(2, 1), (1, 2)])
def test_alternation_updates_a_stage_on_its_batches_only(tmp_path, m, n):
    schedule = {"max_steps": 4, "alternation": {"teacher_steps": m, "student_steps": n}}
    run_training(local(tmp_path, schedule=schedule))
    teacher = losses(tmp_path / "run", "grad_norm_teacher")
    student = losses(tmp_path / "run", "grad_norm_student")
    assert [x is not None for x in teacher] == [True, m == 2, True, m == 2]
    assert [x is not None for x in student] == [n == 2, True, n == 2, True]


def test_a_frozen_table_and_frozen_layers_stay(tmp_path):
    config = local(
        tmp_path,
        embedding={"frozen": True},
        teacher={"freeze": "all_but_head"},
        schedule={"max_steps": 3},
    )
    crew = local_crew(config)
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        crew.ask(RankApi.save, tmp_path / name)
        if name == "before":
            assert len(list(crew.train(0, 3))) == 4
    for file, moved in (("teacher", {"head"}), ("embedding", set()), ("student", None)):
        before, after = (
            load_file(tmp_path / name / f"{file}.safetensors") for name in ("before", "after")
        )
        changed = {n.split(".")[0] for n, t in before.items() if not torch.equal(t, after[n])}
        assert changed == moved if moved is not None else {"bridge", "head"} <= changed


def test_early_stopping_keeps_the_last_of_the_best_weights(tmp_path):
    """A rate of next to nothing never gets better: stop after `patience` validations."""
    tiny_rate = dict.fromkeys(
        ("teacher_learning_rate", "student_learning_rate", "embedding_learning_rate"), 1e-12
    )
    config = local(
        tmp_path, schedule={"epochs": 6}, evaluation={"patience": 2}, optimizer=tiny_rate
    )
    summary = run_training(config)
    assert summary["best_epoch"] == 3, "all are equally good"
    steps_per_epoch = summary["steps"] / 3
    assert steps_per_epoch == int(steps_per_epoch)


def test_the_weights_that_are_kept_can_be_the_best_with_the_teacher_and_without():
    task = make_task("ner", ("O", "B-PER"))
    metrics = {"teacher": 0.9, "student": 0.8, "joint": 0.6, "student_alone": 0.2}
    metrics = {mode: {"f1": value} for mode, value in metrics.items()}
    assert selection_score(task, metrics, "mean") == pytest.approx(0.4)
    assert selection_score(task, metrics, "joint") == metrics["joint"]["f1"]


@pytest.mark.slow
def test_bf16_trains_beside_fp32(tmp_path, monkeypatch):
    monkeypatch.setattr(arithmetic, "multiplies_bf16", lambda: True)  # torch can, if slowly
    for precision in ("fp32", "bf16"):
        config = local(tmp_path, precision, schedule={"max_steps": 4})
        run_training(config.model_copy(update={"precision": precision}))
    ours, reference = losses(tmp_path / "bf16"), losses(tmp_path / "fp32")
    assert ours != reference
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(reference), rtol=0.02, atol=0)


@pytest.mark.slow
def test_masters_are_what_is_kept_of_bf16(tmp_path):
    """Small updates add up in fp32 although bf16 has no room for them."""
    blueprint = tiny_blueprint(tmp_path, schedule={"max_steps": 6}, topology={"runner": "local"})
    spec = blueprint.stages[Stage.TEACHER].optimizer
    module = build_model(blueprint, Stage.TEACHER, 5).module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    engine = LocalEngine(module, replace(spec, learning_rate=1e-6), "bf16", torch.device("cpu"))
    for _ in range(3):
        embeds = torch.ones(2, 4, 32, dtype=torch.bfloat16)
        _, logits = engine.forward(embeds, torch.ones(2, 4, dtype=torch.long))
        engine.backward(logits.float().square().sum(), last=True)
        engine.step(1.0)
    state, kept = engine.state_dict(), {}
    engine.keep_state(lambda name, value: kept.update({name: value.detach().clone()}))
    name = "backbone.encoder.layer.0.intermediate.dense.weight"
    assert state[name].dtype == kept[f"value/{name}"].dtype == torch.float32
    moved = (state[name] - before[name]).abs()
    assert 1e-6 < float(moved.max()) < 4e-6
    assert {p.dtype for p in engine.module.parameters()} == {torch.bfloat16}
    engine.load_state_dict(before)
    assert torch.equal(engine.state_dict()[name], before[name])
    engine.restore_state(kept)
    assert torch.equal(engine.state_dict()[name], state[name])
    assert torch.equal(dict(engine.module.named_parameters())[name], state[name].bfloat16())
