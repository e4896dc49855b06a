"""`tsarch predict --ray`: the output of one process, byte by byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import write_jsonl
from tests.test_pair import run_of
from tsarch.launch.cli import main
from tsarch.launch.training import run_training
from tsarch.pair.state_folder import StateFolder
from tsarch.prediction import journal, pieces

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.thorough]
WORDS = [
    "Maria",
    "Rossi",
    "saw",
    "ships",
    "in",
    "Rome",
    "near",
    "the",
    "old",
    "harbour",
    "of",
    "Genoa",
]


def rows_of(task: str) -> list[dict]:
    """Rows of several lengths; every second of `ner` in documents; some can't be read."""
    rows: list[dict] = []
    for n in range(60):
        words = WORDS[: 2 + n % 9]
        row = {"tokens": words} if task == "ner" else {"text": " ".join(words)}
        rows.append({"id": n, **row} | ({"doc_id": f"d{n // 7}"} if n > 30 else {}))
    long = {"tokens": ["zq" * 45]} if task == "ner" else {"text": "zq" * 45}
    return [*rows[:20], {"nothing": 1}, *rows[20:], {"nothing": 2}, long]


@pytest.mark.parametrize("task", ["ner", "classification"])
def test_the_output_is_that_of_one_process(tmp_path, monkeypatch, capsys, task):
    monkeypatch.setattr(pieces, "INPUTS", 8)
    run_training(run_of(tmp_path, task))
    source = write_jsonl(tmp_path / "in.jsonl", rows_of(task))
    here, on_ray = tmp_path / "here.jsonl", tmp_path / "ray.jsonl"
    given = ["predict", str(tmp_path / "run"), "--input", str(source), "--skip-bad"]
    given += ["--on-unread", "mark", "--output"]
    assert ended(*given, str(here)) == 0
    if task == "ner":  # begun in one process, ended on Ray
        with monkeypatch.context() as patch:
            patch.setattr(journal.Journal, "add", interrupted_at(24))
            assert ended(*given, str(on_ray)) == 130
    assert ended(*given, str(on_ray), "--address", "local", "--workers", "2") == 0
    assert on_ray.read_bytes() == here.read_bytes()
    told = capsys.readouterr().err
    assert "2 of them can't be read" in told
    assert ("1 of them were read in part" in told) == (task == "ner")
    assert ("by an earlier call" in told) == (task == "ner")
    problems = [row["problem"] for row in map(json.loads, here.open()) if "problem" in row]
    assert len(problems) == 2
    assert problems[0].startswith(f"{source}:21: ")


def ended(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def interrupted_at(number: int):
    add = journal.Journal.add

    def add_and_stop(self, *arguments) -> None:
        add(self, *arguments)
        if self.inputs >= number:
            raise KeyboardInterrupt

    return add_and_stop


def test_what_ray_cannot_do_is_told(tmp_path, capsys):
    run_training(run_of(tmp_path, "classification"))
    output = str(tmp_path / "out.jsonl")
    given = ["predict", str(tmp_path / "run"), "--output", output, "--ray", "--address", "local"]
    assert ended(*given, "--input", "-") == 2
    assert "can't be read on Ray" in capsys.readouterr().err
    assert not Path(output).exists()


def test_a_store_is_filled_on_ray_as_in_one_process(tmp_path, monkeypatch, capsys):
    """Of a run that was read in part here; bad rows and all."""
    monkeypatch.setattr(pieces, "INPUTS", 8)
    run_training(run_of(tmp_path, "ner"))
    source = str(write_jsonl(tmp_path / "in.jsonl", rows_of("ner")))
    few = str(write_jsonl(tmp_path / "few.jsonl", rows_of("ner")[:9]))
    run, here, on_ray = str(tmp_path / "run"), tmp_path / "here", tmp_path / "ray"
    assert ended("read", run, "--input", few, "--output", str(on_ray)) == 0
    given = ["read", run, "--input", source, "--skip-bad", "--output"]
    assert ended(*given, str(here)) == 0
    assert ended(*given, str(on_ray), "--address", "local", "--workers", "2") == 0
    assert "2 of 63 inputs can't be read" in capsys.readouterr().err
    stores = [StateFolder(own) for own in (here, on_ray)]
    assert stores[0].keys() == stores[1].keys()
    for key in stores[0].keys():  # noqa: SIM118
        assert np.array_equal(*(own.get(key).hidden for own in stores))
    answers = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    given = ["predict", run, "--input", source, "--skip-bad", "--on-unread", "mark", "--store"]
    assert ended(*given, str(here), "--output", str(answers[0])) == 0
    there = [str(here), "--address", "local", "--workers", "1"]
    assert ended(*given, *there, "--output", str(answers[1])) == 0
    assert answers[0].read_bytes() == answers[1].read_bytes()
