"""A student that works at several depths."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoConfig

import tsarch
from tests.helpers import local_crew, tiny_blueprint, tiny_config, tiny_raw
from tests.suites.equivalence import Case, run_cases
from tests.test_resume import assert_same, end_at, local
from tsarch.config_loading import parse_config
from tsarch.errors import InterruptedRunError, UserError
from tsarch.launch.cli import main
from tsarch.launch.training import run_training
from tsarch.model_folder import load_weights, replace_folder, save_weights
from tsarch.models.depths import name_of_finish
from tsarch.planning.preflight import check_run
from tsarch.run.depths import at_depth
from tsarch.stage.build import build_model, show
from tsarch.topology import Stage


def run_command(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0


THREE = {"layers": [0, 1, 2], "depths": [1, 3]}


@pytest.mark.parametrize(
    ("kind", "name"), [("bert", ""), ("llama", "norm"), ("modernbert", "final_norm")]
)
def test_what_an_architecture_does_behind_its_last_layer(kind, name):
    assert name_of_finish(AutoConfig.for_model(kind)) == name


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_predictions_at_a_depth_are_those_of_the_first_layers(tmp_path, kind, checkpointed):
    config = {
        "model_type": kind,
        "vocab_size": 30522,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    }
    student = {"config": config, "layers": None, "activation_checkpointing": checkpointed}
    deep, small = (
        build_model(
            tiny_blueprint(tmp_path, student={**student, "depths": depths}), Stage.STUDENT, 5
        ).module.train()
        for depths in ([2, 3], [2])
    )
    blueprint = tiny_blueprint(tmp_path, student={**student, "depths": [2, 3]})
    show(blueprint, Stage.STUDENT, deep)
    small.load_state_dict(
        {
            name.replace("depth_heads.2.", "head."): value
            for name, value in deep.state_dict().items()
            if not name.startswith(("head.", "backbone.layers.2.", "backbone.encoder.layer.2."))
        }
    )
    embeds, mask = torch.randn(2, 4, 32), torch.ones(2, 4, dtype=torch.long)
    inputs = [embeds], [mask], torch.randn(2, 32), [torch.tensor([[0, 1, -1, -1]] * 2)]
    full, shallow = deep(*inputs)
    torch.testing.assert_close(shallow, small(*inputs)[0])
    assert not torch.equal(full, shallow)
    shallow.sum().backward()
    grads = {n for n, p in deep.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(".0." in name for name in grads)
    assert "depth_heads.2.linear.weight" in grads
    assert not any("layer.2." in name or "layers.2." in name for name in grads)


@pytest.mark.parametrize(
    ("student", "what"),
    [
        ({"depths": [2, 1]}, "must rise"),
        ({"depths": [1, 3]}, "`depths` has 3, the student 2 layers"),
        ({"layers": [0, 1, 2], "depths": [1, 2]}, "the student has 3 layers, `depths` only 2"),
    ],
)
def test_depths_that_make_no_sense_are_refused(tmp_path, student, what):
    with pytest.raises(UserError, match=what):
        tiny_config(tmp_path, student=student)


def test_more_layers_than_a_model_has_are_refused(tmp_path):
    config = tiny_raw(tmp_path)["teacher"]["config"]
    raw = tiny_raw(tmp_path, student={"layers": None, "config": config, "depths": [2, 4]})
    from tsarch.blueprint import resolve

    with pytest.raises(UserError, match=r"student\.layers: \[3\] are not among"):
        check_run(resolve(parse_config(raw, "tiny")), own_ray=True)


def test_the_loss_is_the_mean_over_the_depths(tmp_path):
    config = tiny_config(tmp_path, student=THREE, topology={"runner": "local"})
    means: dict[str, float] = {}
    for reports in local_crew(config).train(0, 1):
        for report in reports:
            means |= report.losses.means
    names = {"student", "student_alone", "distillation"}
    assert names | {f"{name}_depth1" for name in names} < set(means)


def test_a_run_is_read_at_each_depth(tmp_path, capsys):
    config = local(tmp_path, "run", student=THREE, schedule={"max_steps": 3}, distillation={
        "weight": 0.5, "hidden_weight": 0.5, "hidden_layers": "uniform"
    })  # fmt: skip
    summary = run_training(config)
    run = tmp_path / "run"
    assert set(summary["depths"]) == {"1"}
    assert json.loads((run / "summary.json").read_text())["depths"] == summary["depths"]
    assert summary["depths"]["1"] != summary["after"]
    assert at_depth(run, 3) == run
    run_command("evaluate", str(run), "--depth", "1", "--output", str(tmp_path / "1.json"))
    found = json.loads((tmp_path / "1.json").read_text())["metrics"]
    assert found == summary["depths"]["1"]
    capsys.readouterr()
    run_command("export", str(run), str(tmp_path / "out"), "--depth", "1", "--no-onnx")
    assert capsys.readouterr().err == "", "no bars of transformers"
    texts = ["Ada Lovelace met Charles Babbage in London."]
    modes = ["student_alone"]
    answers = [
        tsarch.load(folder, device="cpu", modes=modes, depth=depth).predict(texts, modes[0])
        for folder, depth in ((run, 1), (tmp_path / "out", None), (run / "depths" / "1", None))
    ]
    assert answers[0] == answers[1] == answers[2]
    ordinary = json.loads((tmp_path / "out" / "student_alone" / "config.json").read_text())
    assert ordinary["num_hidden_layers"] == 1
    with pytest.raises(UserError, match="It works at 1, 3"):
        tsarch.load(run, depth=2)
    capsys.readouterr()


def test_a_depth_is_that_of_the_weights_that_the_run_has_now(tmp_path):
    """Asked for while a run is trained further, or before it is refitted in its place."""
    run_training(local(tmp_path, "run", student=THREE, schedule={"max_steps": 1}))
    run = tmp_path / "run"
    shallow = at_depth(run, 1) / "model"
    before, made = load_weights(shallow, Stage.STUDENT), shallow.stat().st_mtime_ns
    old = {name: before[name] for name in before}
    assert at_depth(run, 1) / "model" == shallow
    assert shallow.stat().st_mtime_ns == made, "it is made once"
    own = load_weights(run / "model", Stage.STUDENT)
    aside = shutil.copytree(run / "model", tmp_path / "model")
    save_weights(aside, Stage.STUDENT, {name: own[name] + 1 for name in own})
    replace_folder(aside, run / "model")
    at_depth(run, 1)
    new = load_weights(shallow, Stage.STUDENT)
    assert set(new) == set(old)
    assert all(torch.equal(new[name], old[name] + 1) for name in old)
    (run / "model" / "task.json").unlink()
    with pytest.raises(UserError, match=r"not a finished run \(model/task.json is missing"):
        at_depth(run, 1)


@pytest.mark.slow
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path, monkeypatch):
    sections = {"schedule": {"epochs": 2, "name": "overlapped"}, "student": THREE}
    run_training(local(tmp_path, "whole", **sections))
    with monkeypatch.context() as patch:
        end_at(patch, 4)
        with pytest.raises(InterruptedRunError, match="saved at step"):
            run_training(local(tmp_path, "halves", **sections))
    run_training(local(tmp_path, "halves", **sections), resume=True)
    assert_same(tmp_path / "halves", tmp_path / "whole")


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(1, 2)
def test_depths_are_the_same_on_any_ranks(tmp_path, crews):
    config = tiny_config(tmp_path, student=THREE, schedule={"epochs": 3})
    cases = [Case("overlapped", "adamw", (1, 2), (2, 3)), Case("joint", "sgd", (1, 2), (0, 2))]
    outcomes = list(run_cases(config, cases, 6, crews))
    assert [outcome.is_equal for outcome in outcomes] == [True, True], outcomes
