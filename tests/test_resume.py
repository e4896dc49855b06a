"""A run that was ended goes on as if it never had been: in one process, in every schedule."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import BertConfig, BertModel

from tests.helpers import QUICKSTART_MODEL, tiny_config, tiny_raw, tracked
from tests.test_checkpoint_store import flip
from tsarch.checkpoint.store import Store
from tsarch.config import Config
from tsarch.data.tokenizer import resolve_model_path
from tsarch.errors import InterruptedRunError, UserError
from tsarch.launch.cli import main
from tsarch.launch.training import run_training
from tsarch.models.weight_files import model_digest
from tsarch.telling.terminal import Reporter
from tsarch.telling.trackers import open_trackers

SLOW = pytest.mark.slow
STEPS = 10  # five an epoch
MEASURED = ("loss_", "grad_norm_", "learning_rate", "tokens", "step", "epoch", "link_bytes")


def local(tmp_path: Path, name: str, **sections: Any) -> Config:
    """A config with dropout, so that random numbers count."""
    sections = {
        "run": {"folder": str(tmp_path / name)},
        "topology": {"runner": "local", "threads": 1},
        "evaluation": {"before": False},
        "checkpoint": {"at_epochs": False, **sections.pop("checkpoint", {})},
        "teacher": {"dropout": 0.1},
        "student": {"dropout": 0.1},
        **sections,
    }
    return tiny_config(tmp_path, **sections)


def rows(folder: Path) -> list[dict[str, Any]]:
    """All that a step's row holds except times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k.startswith(MEASURED) and "_per_s" not in k}
        for line in lines
    ]


def end_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send a signal to this process once `step` is done."""
    old = Reporter.step

    def stop(self: Reporter, numbers: Any, num_done: int, num_steps: int) -> None:
        old(self, numbers, num_done, num_steps)
        if numbers.row["step"] == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Reporter, "step", stop)


def assert_same(one: Path, other: Path, num_steps: int = STEPS) -> None:
    """The same rows, evaluations and weights, to the last bit."""
    assert rows(one) == rows(other)
    assert [row["step"] for row in rows(one)] == list(range(num_steps))
    name = "evaluations.jsonl"
    assert (one / name).read_text() == (other / name).read_text()
    for model in ("teacher", "student", "embedding"):
        file = f"model/{model}.safetensors"
        assert (one / file).read_bytes() == (other / file).read_bytes()


AMID_AN_EPOCH: dict[str, Any] = {
    "topology": {"runner": "local", "threads": 1},
    "evaluation": {"before": False},
    "checkpoint": {"every_steps": 2, "at_epochs": False},
}


def amid_an_epoch(schedule: str, folder: Path) -> dict[str, Any]:
    """Sections of a run of four steps in `folder` that `check_resumption` can end after two."""
    own = {"name": schedule, "micro_batches": 2, "max_steps": 4}
    return {**AMID_AN_EPOCH, "schedule": own, "run": {"folder": str(folder / "whole")}}


def check_resumption(config: Config, folder: Path) -> Config:
    """A run of `amid_an_epoch` that is ended after two steps and goes on is the same as one that
    isn't; returns its config."""
    run_training(config)
    ended = shutil.copytree(folder / "whole", folder / "ended")
    (ended / "summary.json").unlink()
    shutil.rmtree(ended / "checkpoints" / "step-4")  # of its end
    assert [path.name for path in (ended / "checkpoints").iterdir()] == ["step-2"]
    moved = config.model_copy(update={"run": config.run.model_copy(update={"folder": str(ended)})})
    assert run_training(moved, resume=True)["resumes"] == 1
    assert_same(ended, folder / "whole", num_steps=4)
    return moved


@pytest.mark.parametrize(
    ("schedule", "optimizer", "step"),
    [
        ({"name": "overlapped", "micro_batches": 2}, {}, 6),
        # This one comes so late that its epoch ends first.
        pytest.param({"name": "overlapped"}, {"name": "sgd", "momentum": 0.9}, 4, marks=SLOW),
        pytest.param({"name": "sequential"}, {}, 2, marks=SLOW),
        pytest.param({"name": "joint", "micro_batches": 2}, {}, 7, marks=SLOW),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch, schedule, optimizer, step):
    sections = {"schedule": {"epochs": 2, **schedule}, "optimizer": optimizer}
    run_training(local(tmp_path, "whole", **sections))
    config = local(tmp_path, "halves", **sections)
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        end_at(patch, step)
        with pytest.raises(InterruptedRunError, match="saved at step"):
            run_training(config)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not (tmp_path / "halves" / "summary.json").exists()
    summary = run_training(config, resume=True)
    assert_same(tmp_path / "halves", tmp_path / "whole")
    assert summary["resumes"] == 1
    assert summary["steps"] == STEPS
    with pytest.raises(UserError, match="nothing to resume: the run is complete"):
        run_training(config, resume=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(tmp_path, capsys):
    """It was killed at step 9; its newest checkpoint is damaged, and it had written further."""
    run_training(local(tmp_path, "whole", checkpoint={"every_steps": 3, "keep_last": 3}))
    folder = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole", folder)
    (folder / "summary.json").unlink()
    (folder / "checkpoints" / "step-9.partial").mkdir()
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {
        "step-3",
        "step-6",
        "step-9",
        "step-9.partial",
    }
    flip(folder / "checkpoints" / "step-9" / "student-0.safetensors")
    config = local(tmp_path, "killed", checkpoint={"every_steps": 3, "keep_last": 3})
    run_training(config, resume=True)
    out = capsys.readouterr().out
    assert "step-9 is damaged: student-0.safetensors has another content" in out
    assert f"going on from {folder}/checkpoints/step-6" in out
    assert_same(folder, tmp_path / "whole")


def command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """(exit status, all output with line breaks folded)."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    return int(caught.value.code or 0), " ".join((captured.out + captured.err).split())


def test_the_command_line_resumes_a_folder_and_refuses_what_it_must(tmp_path, monkeypatch, capsys):
    raw = tiny_raw(
        tmp_path,
        topology={"runner": "local", "threads": 1},
        evaluation={"before": False},
        schedule={"epochs": 2},
    )
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(raw))
    status, text = command(["train", str(config), "--resume"], capsys)
    assert status == 2
    assert "nothing to resume: there is no run. Start without --resume." in text
    with monkeypatch.context() as patch:
        end_at(patch, 2, signal.SIGINT)
        status, text = command(["train", str(config)], capsys)
    assert status == 128 + signal.SIGINT
    assert "SIGINT: saving a checkpoint" in text
    run = tmp_path / "run"
    assert f"Go on with: tsarch train {run} --resume" in text
    changed = ["--set", "optimizer.teacher_learning_rate=1e-5", "--set", "run.seed=7"]
    status, text = command(["train", str(config), "--resume", *changed], capsys)
    assert status == 2
    assert "--resume: optimizer.teacher_learning_rate: is 1e-05, the checkpoint's run has" in text
    assert "--resume: run.seed: is 7, the checkpoint's run has 0. It must stay" in text
    other = tmp_path / "other.jsonl"
    other.write_text("".join((tmp_path / "train.jsonl").read_text().splitlines(True)[:-3]))
    status, text = command(
        ["train", str(config), "--resume", "--set", f"data.train={other}"], capsys
    )
    assert status == 2
    assert "--resume: data: is not what" in text
    moved = tmp_path / "moved"
    tokenizer = Path(resolve_model_path(QUICKSTART_MODEL))
    shutil.copytree(tokenizer, moved, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    allowed = ["--set", "checkpoint.keep_last=1", "--set", f"data.tokenizer={moved}"]
    status, text = command(["train", str(run), "--resume", *allowed], capsys)
    assert status == 0
    assert (run / "summary.json").exists()
    assert len(list((run / "checkpoints").iterdir())) == 1
    for path in (run / "checkpoints").rglob("manifest.json"):
        path.unlink()
    (run / "summary.json").unlink()
    status, text = command(["train", str(run), "--resume"], capsys)
    assert status == 2
    assert "nothing to resume: no checkpoint is there" in text


def test_a_run_outlives_a_disk_that_takes_no_checkpoint(tmp_path, capsys, monkeypatch):
    config = local(tmp_path, "run", checkpoint={"at_epochs": True}, schedule={"epochs": 2})
    (tmp_path / "run").mkdir()
    old = Store.put

    def put(self: Store, step: int, name: str, write: Any) -> Any:
        if step == 5:
            raise OSError(28, "No space left on device")
        return old(self, step, name, write)

    monkeypatch.setattr(Store, "put", put)
    summary = run_training(config)
    assert summary["checkpoints"]["failed"] == 1
    assert summary["checkpoints"]["count"] == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "warning: no checkpoint at step 5 ([Errno 28] No space left on device)" in out
    assert Store(str(tmp_path / "run" / "checkpoints")).steps() == [10]


def test_trackers_go_back_to_the_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for again, steps in ((False, range(6)), (True, range(3, 5))):
        # Files of curves are read by name: by second, and then `.10` would come before `.9`.
        time.sleep(1.0 - time.time() % 1.0 if again else 0.0)
        with open_trackers(tracked(tmp_path), print) as trackers:
            if again:
                with (tmp_path / "metrics.jsonl").open("a") as file:
                    file.write('{"step": 6, "torn')  # behind what stays: nobody reads it
                trackers.rewind(3, 1)
            trackers.texts("after" if again else "before", [{"joint": "old"}, {"joint": "no"}])
            for step in steps:
                trackers.step({"step": step, "loss_teacher": step + (10.0 if again else 0.0)})
                if step % 2 == 0:
                    trackers.evaluation("validation", step, {"joint": {"f1": 0.5}})
            assert trackers.num_evaluations == (2 if again else 3)
    lines_now = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss_teacher"] for line in lines_now] == [0, 1, 2, 13, 14]
    evaluations = (tmp_path / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in evaluations] == [0, 4]
    texts = (tmp_path / "texts.jsonl").read_text().splitlines()
    assert [json.loads(line)["when"] for line in texts] == ["before"] * 2 + ["after"] * 2
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = curves.Scalars("train/loss_teacher")
    assert [(p.step, p.value) for p in points] == [(0, 0), (1, 1), (2, 2), (3, 13), (4, 14)]


def test_a_run_that_starts_anew_keeps_nothing(tmp_path):
    for again in (False, True):
        with open_trackers(tracked(tmp_path), print) as trackers:
            if again:
                trackers.rewind(0, 0)
            trackers.texts("before", [{"joint": "a"}])
            trackers.evaluation("test", 0, {"joint": {"f1": 0.5}})
            trackers.step({"step": 0})
    for name in ("metrics", "evaluations", "texts"):
        assert len((tmp_path / f"{name}.jsonl").read_text().splitlines()) == 1


def random_model(folder: Path, seed: int) -> Path:
    """The tiny teacher with other weights."""
    torch.manual_seed(seed)
    raw = dict(tiny_raw(folder.parent)["teacher"]["config"])
    BertModel(BertConfig(**raw)).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frozen", "may_change"),
    [({"freeze": "all_but_head"}, False), ({"lora": {"rank": 2}}, False), ({}, True)],
)
def test_models_that_are_read_again_must_be_the_same_wherever_they_lie(
    tmp_path, monkeypatch, capsys, frozen, may_change
):
    model = random_model(tmp_path / "model", 1)
    raw = tiny_raw(tmp_path, topology={"runner": "local"}, evaluation={"before": False})
    raw["teacher"] = {"model": str(model), "max_tokens": raw["teacher"]["max_tokens"], **frozen}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    with monkeypatch.context() as patch:
        end_at(patch, 2, signal.SIGINT)
        status, _ = command(["train", str(tmp_path / "c.yaml")], capsys)
    assert status == 128 + signal.SIGINT
    resume = ["train", str(tmp_path / "run"), "--resume", "--set"]
    moved, other = tmp_path / "moved", random_model(tmp_path / "other", 2)
    shutil.copytree(model, moved)
    if not may_change:
        status, text = command([*resume, f"teacher.model={other}"], capsys)
        assert status == 2
        assert "--resume: models: aren't what they were" in text
    again = other if may_change else moved
    status, text = command([*resume, f"teacher.model={again}"], capsys)
    assert status == 0, text


def test_large_files_are_told_apart_by_parts_of_them(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    numbers = np.arange(2**21, dtype=np.float32)
    (folder / "model.safetensors").write_bytes(numbers.tobytes())
    (folder / "config.json").write_text("{}")
    known = model_digest(str(folder), True)
    (folder / "model.safetensors").write_bytes((numbers + 1).tobytes())
    assert model_digest(str(folder), True) != known
    known = model_digest(str(folder), False)
    (folder / "config.json").write_text('{"hidden_act": "relu"}')
    assert model_digest(str(folder), False) != known
