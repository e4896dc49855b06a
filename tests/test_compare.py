"""Runs beside each other: what differs, what is best, and pages that need nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.test_report import made_up, metrics, read
from tsarch.errors import UserError
from tsarch.launch.cli import main
from tsarch.telling.compared_runs import FIGURES, ComparedRun, read_runs
from tsarch.telling.comparison import (
    _SHOWN,
    Line,
    compare_runs,
    step_curves,
    validation_curves,
)


def folder(tmp_path: Path, name: str, **changes: object) -> Path:
    made = tmp_path / name
    made.mkdir()
    made_up(made, **changes)
    return made


@pytest.fixture
def runs(tmp_path: Path) -> list[ComparedRun]:
    return read_runs([folder(tmp_path, "a"), folder(tmp_path, "b", after=metrics(0.6))])


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, arguments)])
    return int(ended.value.code or 0)


def line(lines: tuple[Line, ...], *names: str) -> Line:
    (found,) = (own for own in lines if own.names == names)
    return found


def test_only_keys_that_differ_are_told_and_not_those_that_name_the_run(tmp_path):
    one, other = folder(tmp_path, "a"), folder(tmp_path, "b")
    text = (other / "config.yaml").read_text().replace("max_tokens: 40", "max_tokens: 36")
    (other / "config.yaml").write_text(text.replace("name: tiny", "name: mine"))
    runs = read_runs([one, other])
    shorter = [own for own in compare_runs(runs).keys if not own.names[0].startswith("data.")]
    assert shorter == [Line(("student.max_tokens",), ("40", "36"))]


def test_the_best_of_each_mode_is_told_on_each_split(runs):
    found = compare_runs(runs)
    assert line(found.metrics, "test", "joint", "f1") == Line(
        ("test", "joint", "f1"), ("0.5200", "0.6200"), frozenset({1})
    )
    assert line(found.metrics, "validation", "joint", "f1").best == frozenset()  # alike
    assert {own.names[1] for own in found.metrics} == {
        "teacher", "student", "joint", "student_alone",
    }  # fmt: skip


def test_less_is_better_where_the_main_metric_says_so(runs):
    low = [replace(run, main_metric="f1", lower_is_better=True) for run in runs]
    found = compare_runs(low).metrics
    assert line(found, "test", "joint", "f1").best == frozenset({0})
    assert line(found, "test", "joint", "recall").best == frozenset({1})


def test_speed_is_that_of_the_steps_and_of_the_summary(runs):
    runs[1] = replace(runs[1], steps=[{**row, "wall_s": 1.0} for row in runs[1].steps])
    speed = compare_runs(runs).speed
    rate = line(speed, "tokens a second")
    assert (rate.cells, rate.best) == (("2,000", "1,000"), frozenset({0}))
    assert line(speed, "peak memory of a teacher rank").cells == ("1 GB", "1 GB")
    assert line(speed, "median step").best == frozenset({0})


def test_a_run_that_goes_on_is_compared_by_its_last_validation(tmp_path):
    whole, going_on = folder(tmp_path, "a"), folder(tmp_path, "b")
    (going_on / "summary.json").unlink()
    with (going_on / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "to')  # amid a line
    found = compare_runs(read_runs([whole, going_on]))
    assert found.notes == ("b has not finished: its scores are those of its last validation",)
    assert line(found.metrics, "validation", "joint", "f1").cells == ("0.5200", "0.5200")
    assert line(found.metrics, "test", "joint", "f1").cells == ("0.5200", "–")
    assert line(found.speed, "steps").cells == ("3", "3")
    assert line(found.speed, "idle (bubble fraction)").cells == ("20.0 %", "–")


def test_a_run_that_was_measured_on_the_test_split_alone_is_compared_there(tmp_path):
    whole, shallow = folder(tmp_path, "a"), folder(tmp_path, "b")
    summary = json.loads((shallow / "summary.json").read_text(encoding="utf-8"))
    summary.pop("validation")
    (shallow / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    found = compare_runs(read_runs([whole, shallow]))
    assert line(found.metrics, "validation", "joint", "f1").cells == ("0.5200", "–")
    assert line(found.metrics, "test", "joint", "f1").cells == ("0.5200", "0.5200")


def test_other_data_is_said(runs):
    digests = [{"test": "x", "validation": "v"}, {"test": "y", "validation": "v"}]
    own = [replace(run, digests=digest) for run, digest in zip(runs, digests)]
    (note,) = compare_runs(own).notes
    assert note == "the runs have other test splits: their scores there can't be compared"


def test_other_tasks_are_said(runs):
    first, *others = runs
    notes = compare_runs([replace(first, task="qa"), *others]).notes
    assert "the runs have other tasks (qa, ner): their scores can't be compared" in notes


def test_curves_are_over_steps_and_over_seconds(runs):
    curves = step_curves(runs)
    assert set(curves) == {"loss_teacher", "loss_student", "tokens_per_s"}
    assert curves["loss_student"][0].places == (0.0, 2.0)  # where it is finite
    assert validation_curves(runs)["joint", "f1"][0].places == (3.0,)
    assert validation_curves(runs, over_time=True)["joint", "f1"][0].places == (1.5,)


def test_metrics_of_other_kinds_are_not_drawn_on_one_scale(runs):
    first, other = runs
    curves = validation_curves([first, replace(other, main_metric="recall")])
    assert [own.run for own in curves["joint", "f1"]] == [first.label]
    assert [own.run for own in curves["joint", "recall"]] == [other.label]


def test_tables_and_a_page_that_needs_nothing_else(tmp_path, capsys):
    one, other = folder(tmp_path, "a"), folder(tmp_path, "<b>&")
    assert command(one, other, "--html", tmp_path / "page.html") == 0
    text = capsys.readouterr().out
    for word in ("data.test", "student_alone", "tokens a second", "▁"):
        assert word in text
    page = read(tmp_path, "page.html")
    assert "<b>&" in page.text
    figures = [tag for tag, _ in page.tags if tag == "figure"]
    assert len(figures) == 4 + 4 + 3  # each mode by steps and seconds; two losses, speed


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    folders = [tmp_path / part / "run" for part in ("x", "y")]
    for own in folders:
        own.mkdir(parents=True)
        made_up(own)
    assert [run.label for run in read_runs(folders)] == ["x/run", "y/run"]


def test_mistakes_are_all_named_before_anything_is_read(tmp_path, capsys):
    run = folder(tmp_path, "a")
    assert command(tmp_path / "no", run, tmp_path) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("is not a run's folder: it has no config.yaml.") == 2
    assert command(run) == 2
    assert "compares two runs or more" in capsys.readouterr().err
    assert command(run, run) == 2
    assert "the same run is named twice" in capsys.readouterr().err


def test_damaged_files_are_named(tmp_path, capsys):
    one, other = folder(tmp_path, "a"), folder(tmp_path, "b")
    assert command(one, other, "--html", tmp_path / "no" / "page.html") == 2
    assert "can't be written (No such file or directory)" in capsys.readouterr().err
    rows = (other / "metrics.jsonl").read_text().splitlines()
    (other / "metrics.jsonl").write_text("\n".join([rows[0], "{", rows[1]]) + "\n")
    assert command(one, other) == 2
    assert "metrics.jsonl:2: is not a row of a run" in " ".join(capsys.readouterr().err.split())
    (other / "metrics.jsonl").unlink()
    (other / "summary.json").write_text(json.dumps([]))
    assert command(one, other) == 2
    assert "is damaged: it is no JSON object" in capsys.readouterr().err


def summary_with(**changes: object) -> dict[str, object]:
    return {"main_metric": "f1", "after": metrics(0.5), **changes}


HUGE = "9" * 400
DAMAGED = {
    "evaluations.jsonl": (
        '{"x": 1}',
        '{"split": "validation", "step": 1}',
        '{"split": "validation", "step": "1", "metrics": {}}',
        '{"split": "validation", "step": -1, "metrics": {}}',
        '{"split": "validation", "step": 1, "metrics": {"joint": null}}',
        '{"split": "validation", "step": 1, "metrics": {"joint": {"f1": "0.5"}}}',
        '{"split": ["validation"], "step": 1, "metrics": {}}',
    ),
    "metrics.jsonl": (
        '{"step": 7, "wall_s": null}',
        '{"step": 7, "tokens": 5, "wall_s": null}',
        '{"step": 7, "tokens": [5], "wall_s": 1.0}',
        '{"step": 7, "tokens": true, "wall_s": 1.0}',
        f'{{"step": 7, "tokens": {HUGE}, "wall_s": 1.0}}',
        '{"step": 7, "tokens": 5, "wall_s": Infinity}',
        '{"step": 7, "tokens": 5, "wall_s": 1.0, "loss_teacher": "nan"}',
        '{"step": null, "tokens": 5, "wall_s": 1.0}',
        "[" * 100_000,
    ),
    "summary.json": (
        json.dumps(summary_with(after=None)),
        json.dumps(summary_with(after={"joint": 1})),
        json.dumps(summary_with(validation={"joint": {"f1": "much"}})),
        json.dumps(summary_with(wall_s="long")),
        json.dumps(summary_with(stage_busy_share={"teacher": [1]})),
        f'{{"after": {{"joint": {{"f1": {HUGE}}}}}}}',
        "[" * 100_000,
        "[]",
    ),
    "model/task.json": ("{", "[]", "{}", '{"task": "ner", "labels": 1, "joint_weight": 0.5}'),
}


CASES = {f"{name}-{i}": (name, text) for name, own in DAMAGED.items() for i, text in enumerate(own)}


@pytest.mark.parametrize(("name", "text"), CASES.values(), ids=CASES)
def test_what_is_damaged_is_named(tmp_path, name, text):
    folders = [folder(tmp_path, "a"), folder(tmp_path, "b")]
    file = folders[1] / name
    file.parent.mkdir(exist_ok=True)
    before = file.read_text() if name.endswith(".jsonl") else ""
    file.write_text(f"{before}{text}\n")
    with pytest.raises(UserError) as found:
        read_runs(folders)
    (mistake,) = found.value.mistakes
    line = f":{len(before.splitlines()) + 1}" if name.endswith(".jsonl") else ""
    assert mistake.where == f"{file}{line}"


def test_what_can_be_is_not_taken_for_damage(tmp_path):
    folders = [folder(tmp_path, "a", after=metrics(float("inf"))), folder(tmp_path, "b")]
    with (folders[0] / "evaluations.jsonl").open("a") as file:
        file.write('{"split": "validation", "step": 9, "metrics": {"joint": {"f1": null}}}\n')
        file.write('{"split": "validation", "step": 9, "metrics": {"other": {"f1": 0.5}}}\n')
    runs = read_runs(folders)
    assert compare_runs(runs).metrics
    assert len(validation_curves(runs)["joint", "f1"][0].values) == 1
    assert validation_curves(runs, over_time=True)["other", "f1"][0].places == (1.5,)


def test_figures_that_are_shown_are_looked_at():
    assert set(_SHOWN) == set(FIGURES)
