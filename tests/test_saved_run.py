"""A finished run is measured from its folder and a file alone, and it is told of which data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import tiny_config, tiny_raw, write_jsonl
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.tokenizer import load_tokenizer
from tsarch.errors import UserError
from tsarch.launch.cli import main
from tsarch.launch.training import run_training
from tsarch.run.saved_run import evaluate_run

Summary = dict[str, Any]


def rows_of(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def moved(tmp_path_factory) -> tuple[Path, Summary]:
    """A run whose folder was moved, and whose models and data are gone but for a copy of the test
    file beside it; and its summary."""
    from transformers import AutoModel, BertConfig

    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    values = dict(tiny_raw(first)["teacher"]["config"])
    del values["model_type"]
    model = first / "model"
    AutoModel.from_config(BertConfig(**values)).save_pretrained(model)
    load_tokenizer(tiny_raw(first)["data"]["tokenizer"]).save_pretrained(str(model))
    config = tiny_config(
        first,
        teacher={"config": None, "model": str(model)},
        data={"tokenizer": None},
        topology={"runner": "local", "threads": 1},
        schedule={"epochs": 1},
        checkpoint={"at_epochs": False, "every_s": None},
        evaluation={"before": False},
    )
    summary = run_training(config)
    shutil.copytree(first / "run", second / "run")
    shutil.copy(first / "test.jsonl", second / "kept.jsonl")
    shutil.rmtree(first)
    load_tokenizer.cache_clear()
    return second, summary


def test_a_run_is_measured_from_its_moved_folder_and_a_file(moved):
    folder, summary = moved
    found = evaluate_run(folder / "run", "test", data=str(folder / "kept.jsonl"))
    assert found.evaluation.metrics == summary["after"]
    assert found.is_own
    rows = [json.loads(line)["tokens"] for line in (folder / "kept.jsonl").open()]
    tokenizer = load_tokenizer(str(folder / "run" / "model" / "tokenizer"))
    tokens, _ = RowTokenizer(tokenizer, None, keep=False).words(rows)
    long = sum(len(own) > found.blueprint.window_tokens for own in tokens)
    assert long, "predictions of these overlap, and that is said"
    (note,) = found.notes
    assert note.startswith(f"test: {long} sentences are longer than a window")


def test_the_same_by_set_relative_to_the_current_folder(moved, monkeypatch):
    folder, summary = moved
    monkeypatch.chdir(folder)
    found = evaluate_run(Path("run"), "test", overrides=["data.test=kept.jsonl"])
    assert found.evaluation.metrics == summary["after"]


def test_several_files_are_found_by_their_pattern(moved):
    folder, summary = moved
    found = evaluate_run(folder / "run", "test", data=str(folder / "kep*.jsonl"))
    assert found.evaluation.metrics == summary["after"]
    assert found.is_own


def test_data_that_is_gone_is_one_message_with_the_ways_on(moved):
    folder, _ = moved
    with pytest.raises(UserError) as caught:
        evaluate_run(folder / "run", "test")
    (mistake,) = caught.value.mistakes
    assert mistake.where.startswith("data.test: ")
    assert mistake.what == "is not there."
    assert "--data FILE" in mistake.hint


def command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """(exit status, all output with line breaks folded)."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    return int(caught.value.code or 0), " ".join((captured.out + captured.err).split())


def test_another_file_is_shown_kept_and_noted(moved, tmp_path, capsys):
    folder, _ = moved
    rows = rows_of(folder / "kept.jsonl")
    rows[0]["tags"] = ["O"] * len(rows[0]["tags"])
    other, output = write_jsonl(tmp_path / "other.jsonl", rows), tmp_path / "found.json"
    arguments = ["evaluate", str(folder / "run"), "--data", str(other), "--mode", "teacher"]
    status, text = command([*arguments, "--output", str(output)], capsys)
    assert status == 0
    assert f"data.test: {other} · model of {folder / 'run'}" in text
    assert f"note: data.test: {other} is not the data that the run had" in text
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["data"]["is_run_data"] is False
    assert found["data"]["digest"] != found["data"]["run_digest"]
    assert found["metrics"].keys() == {"teacher"}


def test_a_label_that_the_run_never_saw_is_named_with_its_place(moved, tmp_path):
    folder, _ = moved
    rows = rows_of(folder / "kept.jsonl")
    rows[2]["tags"] = ["B-COMET"] + ["O"] * (len(rows[2]["tags"]) - 1)
    other = write_jsonl(tmp_path / "other.jsonl", rows)
    with pytest.raises(UserError, match=r"other.jsonl:3: label `COMET` is not among those"):
        evaluate_run(folder / "run", "test", data=str(other))


@pytest.mark.parametrize(
    "override",
    ["student.layers=[0]", "optimizer.name=sgd", "data.tokenizer=x", "schedule.epochs=3"],
)
def test_what_a_trained_run_has_learned_with_cannot_be_set(moved, override):
    folder, _ = moved
    with pytest.raises(UserError, match="can't be changed any more"):
        evaluate_run(folder / "run", "test", overrides=[override])


def test_an_older_runs_data_is_said_to_be_unknown(moved, tmp_path):
    folder, _ = moved
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    raw = json.loads((run / "model" / "task.json").read_text(encoding="utf-8"))
    del raw["data"]
    (run / "model" / "task.json").write_text(json.dumps(raw), encoding="utf-8")
    found = evaluate_run(run, "test", "teacher", data=str(folder / "kept.jsonl"))
    assert found.is_own is None
    assert "isn't known" in found.notes[0]


def test_a_run_says_that_windows_have_no_special_tokens(moved, tmp_path):
    folder, _ = moved
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    file = run / "model" / "task.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    assert raw["window_special_tokens"] is False
    file.write_text(json.dumps(raw | {"window_special_tokens": True}), encoding="utf-8")
    with pytest.raises(UserError, match="special tokens around its windows; here it never does"):
        evaluate_run(run, "test", "teacher", data=str(folder / "kept.jsonl"))


def test_a_digest_is_of_rows_and_documents_and_not_of_places(moved, tmp_path):
    folder, _ = moved
    run, rows = folder / "run", rows_of(folder / "kept.jsonl")

    def digest(name: str, changed: list[dict[str, Any]], *overrides: str) -> str:
        path = write_jsonl(tmp_path / name, changed)
        return evaluate_run(run, "test", "teacher", overrides, str(path)).digest

    same = digest("a.jsonl", rows)
    assert digest("b.jsonl", rows, "teacher.max_tokens=64") == same
    alone = [{**row, "doc_id": f"d{place}"} for place, row in enumerate(rows)]
    assert digest("c.jsonl", alone) != same
    assert digest("d.jsonl", [{**r, "doc_id": f"{r['doc_id']}x"} for r in rows]) == same
    assert digest("e.jsonl", rows[:-1]) != same
