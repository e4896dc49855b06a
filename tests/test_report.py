"""The report: complete, in one safe file, small for any run, and only of runs that finished."""

from __future__ import annotations

import itertools
import json
import tomllib
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT, tiny_config
from tsarch.config import MODES, Config
from tsarch.config_loading import dump_config
from tsarch.errors import RunFailedError
from tsarch.launch.training import run_training
from tsarch.records import TickReport
from tsarch.run.loop import Trainer
from tsarch.run.restarts import Restart
from tsarch.telling import report
from tsarch.telling.pages import show_bytes, show_count, show_seconds
from tsarch.telling.report import mode_rows, model_name
from tsarch.telling.report import write_report as write

PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Tags with their attributes, and the text, of a page whose tags must be balanced."""

    VOID = ("meta", "br", "path", "use", "rect", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def read(folder: Path, name: str = "report.html") -> Page:
    """The report of a run, or another page, which must need nothing from outside and run
    nothing."""
    text = (folder / name).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        target = attributes.get("href") or attributes.get("xlink:href") or "#"
        assert target.startswith("#") or (tag, target) == ("a", "https://ui.perfetto.dev")
    assert "url(http" not in text
    assert "@import" not in text
    return page


def metrics(value: float) -> dict[str, dict[str, float]]:
    names = ("precision", "recall", "f1", "f1_conlleval", "accuracy")
    return {mode: dict.fromkeys(names, value + i / 100) for i, mode in enumerate(MODES)}


def made_up(folder: Path, num_steps: int = 3, **changes: Any) -> Config:
    """The files of a finished run that never ran."""
    config = tiny_config(
        folder, topology={"teacher": {"replicas": 48}, "student": {"replicas": 16}}
    )
    (folder / "config.yaml").write_text(dump_config(config))
    stages = ("teacher", "student")
    summary = {
        "task": "ner",
        "schedule": "overlapped",
        "runner": "ray",
        **{
            s: {"model": f"org/{s}", "parameters": 1_234_567, "replicas": 1, "zero_stage": 2}
            for s in stages
        },
        "embedding_parameters": 2_000_000,
        "main_metric": "f1",
        "lower_is_better": False,
        "samples": [],
        "before": metrics(0.1),
        "after": metrics(0.5),
        "validation": metrics(0.5),
        "best_epoch": 2,
        "selected_by": "joint",
        "data": {
            split: dict.fromkeys(("rows", "words", "labels", "tokens"), 12345)
            for split in ("train", "validation", "test")
        },
        "signatures": {"bleu": "tok:none"},
        "notes": ["the test split has <one> label only"],
        "joint_weight": 0.4,
        "steps": num_steps,
        "tokens": 3000,
        "wall_s": 200.0,
        "train_s": 100.0,
        "pipeline_s": 99.0,
        "tokens_per_s": 30.0,
        "stage_busy_share": dict.fromkeys(stages, 0.8),
        "bubble_fraction": 0.2,
        **{f"{n}_per_step": 2_500_000 for n in ("link_bytes", "tied_bytes")},
        **{f"{n}_s_per_step": 0.25 for n in ("link", "link_wait", "tied", "tied_wait")},
        "tied_max_abs_diff": 0.0,
        "peak_memory_bytes": dict.fromkeys(stages, 10**9),
        "restarts": 0,
        **changes,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = [
        {
            "step": i,
            "tokens": 1000,
            "wall_s": 0.5,
            "tokens_per_s": 2000.0,
            "loss_teacher": 1 / (i + 1),
            "loss_student": None if i % 2 else 1.0,
        }
        for i in range(num_steps)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = {"split": "validation", "step": num_steps, "metrics": metrics(0.5)}
    (folder / "evaluations.jsonl").write_text(json.dumps(evaluation) + "\n")
    return config


def test_a_report_says_what_differs_from_the_defaults(tmp_path):
    made_up(tmp_path)
    write(tmp_path)
    text = " ".join(read(tmp_path).text.split())
    assert "key default this run" in text
    assert "teacher.max_tokens 512 96" in text
    assert "distillation.weight 0.0 0.5" in text
    assert "teacher.config.hidden_size – 32" in text
    assert "optimizer.beta1" not in text


def test_a_report_shows_examples_of_what_is_predicted(tmp_path):
    made_up(tmp_path)
    parts = [
        {"text": "Ada", "mark": "right", "note": "PER"},
        {"text": "met <him>", "mark": "", "note": ""},
    ]
    row = {
        "right": True,
        "place": "/data/test.jsonl:7",
        "question": "",
        "said": "",
        "gold": "",
        "score": None,
        "parts": parts,
    }
    scores = {m: {"columns": ["label", "f1", "support"], "rows": []} for m in MODES}
    errors = {
        "split": "test",
        "mode": "joint",
        "rows": 1,
        "rows_of_split": 1,
        "sample": [row],
        "kinds": {m: {"right": 1} for m in MODES},
        "mistakes": {m: [] for m in MODES},
        "counts": dict.fromkeys(MODES),
        "scores": scores,
        "agreement": [],
        "units": 1,
        "unit": "entities",
    }
    pairs = itertools.combinations(MODES, 2)
    better = {"same": 1, "one_better": 0, "other_better": 0, "neither": 0}
    errors["agreement"] = [{"one": one, "other": other, **better} for one, other in pairs]
    (tmp_path / "errors.json").write_text(json.dumps(errors))
    write(tmp_path)
    page = read(tmp_path)
    text = " ".join(page.text.split())
    assert "Some rows of the test split as joint sees them. right test.jsonl:7 Ada PER met" in text
    assert ("mark", {"class": "right"}) in page.tags


def test_a_profiled_run_says_where_a_step_went(tmp_path):
    made_up(tmp_path)
    spent = {"name": "teacher Forward", "number": 3, "seconds": 3.0, "flops": 6e9}
    profile = {
        "rank": 0,
        "num_ticks": 2,
        "seconds": 4.0,
        "device": "cpu",
        "threads": 1,
        "instructions": [spent],
        "operators": [{**spent, "name": "aten::mm", "flops": 0.0}],
        "peak_flops_s": 4e9,
    }
    (tmp_path / "profile.json").write_text(json.dumps([profile]))
    write(tmp_path)
    text = " ".join(read(tmp_path).text.split())
    assert "rank 0: 2 steps of 2 s; peak 4 GFLOP/s on cpu" in text
    assert "teacher Forward 1.5 s 75.0 % 2.0 50 % between instructions" in text
    assert "aten::mm 1.5 s 75.0 %" in text


def test_a_traced_run_gets_a_report_with_its_timeline(tmp_path):
    config = tiny_config(
        tmp_path,
        run={"name": "mine", "folder": str(tmp_path / "run"), "trace": True},
        schedule={"max_steps": 4, "micro_batches": 2},
        topology={"runner": "local"},
    )
    summary = run_training(config)
    folder = tmp_path / "run"
    page = read(folder)
    assert [tag for tag, _ in page.tags].count("svg") == 4
    for mode in MODES:
        for when in ("before", "after"):
            assert f"{summary[when][mode]['f1']:.4f}" in page.text
    words = ("mine", "random bert (3 layers, 32 wide)", "layers 0, 2 of the teacher", "one process")
    lanes = ("teacher 0", "student 0", "forward", "waiting for other ranks", "micro-batch")
    for text in (*words, *lanes, f"{100 * summary['bubble_fraction']:.1f} %"):
        assert text in page.text, text
    assert (folder / "timeline.png").read_bytes().startswith(PNG)
    assert (folder / "report.html").stat().st_size < 200_000
    assert not list(folder.glob("*.tmp"))
    rows = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [row["split"] for row in rows] == ["test", "validation", "test"]
    assert rows[-1]["metrics"] == summary["after"]


def test_what_the_data_says_is_shown_and_not_run(tmp_path):
    evil = '<script>alert("x")</script>'
    made_up(tmp_path, teacher={"model": evil, "parameters": 1, "replicas": 1, "zero_stage": None})
    write(tmp_path)
    assert evil in read(tmp_path).text
    assert evil not in (tmp_path / "report.html").read_text()


def test_the_report_says_how_much_data_there_was_and_what_was_noted(tmp_path):
    made_up(tmp_path)
    page = read(write(tmp_path).parent)
    for text in ("words", "12,345", "the test split has <one> label only", "tok:none"):
        assert text in page.text, text


def test_a_run_without_a_first_evaluation_and_without_a_trace(tmp_path):
    made_up(tmp_path, before=None)
    page = read(write(tmp_path).parent)
    assert "student_alone reached a test f1 of 0.5300, at 30 tokens/s" in page.text
    assert "was not traced" in page.text
    assert not (tmp_path / "timeline.png").exists()


def test_failures_are_listed_with_what_they_cost(tmp_path):
    killed = Restart("student 0 (rank 1) on <host> was killed", 0.0, 20, 16, 12.5, 3.0)
    made_up(tmp_path, restarts=2, failures=[asdict(killed), asdict(Restart("last", 0.0, 30))])
    page = read(write(tmp_path).parent)
    for text in ("restarts 2", "What failed", killed.cause, "12.5 s", "last"):
        assert text in page.text, text
    made_up(tmp_path)
    assert "What failed" not in read(write(tmp_path).parent).text


@pytest.mark.slow
def test_many_steps_and_ranks_stay_small(tmp_path):
    config = made_up(tmp_path, num_steps=20_000)
    traced = config.model_copy(update={"run": config.run.model_copy(update={"trace": True})})
    (tmp_path / "config.yaml").write_text(dump_config(traced))
    rows = [
        {"ph": "X", "pid": pid, "tid": tid, "ts": 50.0 * i, "dur": 40.0, "name": "Forward"}
        | {"cat": "compute", "args": {"epoch": 0, "tick": i // 8, "step": i // 8}}
        for i in range(256)
        for pid, replicas in enumerate((48, 16))
        for tid in range(replicas)
    ]
    (tmp_path / "trace.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    write(tmp_path)
    page = read(tmp_path)
    assert "teacher 23" in page.text
    assert "teacher 24" not in page.text
    assert "32 more ranks are left out" in page.text
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    assert (tmp_path / "timeline.png").read_bytes().startswith(PNG)


def test_a_run_that_fails_keeps_its_metrics_and_has_no_report(tmp_path, monkeypatch):
    config = tiny_config(
        tmp_path, topology={"runner": "local"}, schedule={"epochs": 1}, evaluation={"before": False}
    )
    note = Trainer._note

    def failing(self: Trainer, reports: list[TickReport]) -> None:
        if reports[0].tick == 3:
            raise RunFailedError("rank 1 failed")
        note(self, reports)

    monkeypatch.setattr(Trainer, "_note", failing)
    with pytest.raises(RunFailedError):
        run_training(config)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"config.yaml", "metrics.jsonl", "evaluations.jsonl", "tensorboard", "logs"}
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_report_that_fails_leaves_no_half(tmp_path, monkeypatch):
    made_up(tmp_path)
    monkeypatch.setattr(report, "verdict", lambda summary: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path)
    assert not list(tmp_path.glob("report*"))


def test_changes_of_the_metrics():
    rows = mode_rows({"before": metrics(0.25), "after": metrics(0.5)}, ["f1"])
    assert [row.mode for row in rows] == list(MODES)
    assert rows[0].cells == ((0.25, 0.5, 0.25),)
    assert mode_rows({"before": None, "after": metrics(0.5)}, ["f1"])[0].cells == (
        (None, 0.5, None),
    )


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (show_bytes(0), "0 B"),
        (show_bytes(1_430_000), "1.43 MB"),
        (show_bytes(999_700), "1 MB"),
        (show_bytes(25e12), "25 TB"),
        (show_seconds(0.0123), "12.3 ms"),
        (show_seconds(0), "0 ms"),
        (show_seconds(119.4), "119 s"),
        (show_seconds(725), "12 min 5 s"),
        (show_seconds(12_000), "3 h 20 min"),
        (show_count(97), "97"),
        (show_count(28_900), "28.9 k"),
        (show_count(334_100_000), "334.1 M"),
        (model_name("bert-base-cased"), "bert-base-cased"),
        (model_name({"layers_of_teacher": [0, 5]}), "layers 0, 5 of the teacher"),
        (model_name({"model_type": "t5"}), "random t5"),
        (model_name({"model_type": "t5"}, is_started=True), "another run's t5"),
    ],
)
def test_numbers_and_names_for_people(shown, expected):
    assert shown == expected


def test_files_that_are_no_code_are_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package, patterns in settings["package-data"].items():
        packaged = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
        others = {
            path
            for path in (ROOT / package).rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc")
        }
        assert others <= packaged, package
