"""`make parity-trainer` and `make study-alone`: what is run again, and the tables."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import parity_trainer, study_alone
from benchmarks.parity_trainer import DataSet, Score, data_sets, part
from benchmarks.processes import SideError
from benchmarks.study_alone import TASKS, VARIANTS, Conditions, Outcome
from tests.helpers import ROOT, write_jsonl
from tsarch.config_loading import load_config


def test_a_part_of_the_rows_is_of_whole_documents_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(parity_trainer, "RUNS", tmp_path / "runs")
    rows = [{"doc_id": str(number // 3), "place": number} for number in range(60)]
    for split in parity_trainer.SPLITS:
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    own = DataSet("ner", "mine", tmp_path)
    folder, count = part(own, 28)
    kept = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert count == len(kept) == 30
    assert [row["place"] for row in kept] == sorted(row["place"] for row in kept)
    assert Counter(row["doc_id"] for row in kept).most_common()[-1][1] == 3
    assert kept[-1]["place"] > 40  # labels may be in order
    rest = [json.loads(line) for line in (folder / parity_trainer.REST).read_text().splitlines()]
    assert sorted(row["place"] for row in kept + rest) == list(range(60))
    assert len((folder / "test.jsonl").read_text().splitlines()) == 60
    assert part(own, None) == part(own, 60) == (tmp_path, 60)
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a"}] * 5)  # rows of no document
    assert part(own, 4)[1] == 4


def test_sets_of_a_folder_come_after_those_of_the_configs(tmp_path):
    for name in ("ner/mine", "ner/wikigold", "classification/other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "train.jsonl").touch()
    names = [(own.task, own.name) for own in data_sets(tmp_path)]
    assert names == [
        ("ner", "wikigold"),
        ("classification", "csabstruct"),
        ("ner", "mine"),
        ("classification", "other"),
    ]
    assert data_sets(tmp_path)[0].folder == Path("configs/wikigold")


def test_a_finished_side_is_not_run_again_and_both_have_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(parity_trainer, "RUNS", tmp_path)
    calls: list[tuple[str, list[str]]] = []

    def run(module: str, arguments: list[str], *_: Any, **__: Any) -> None:
        calls.append((module, arguments))
        if module == "benchmarks.hf_trainer":
            file = Path(arguments[arguments.index("--output") + 1])
            file.write_text(json.dumps({"after": {"test": {"f1": 0.5}}}))
        else:
            folder = next(a for a in arguments if a.startswith("run.folder=")).partition("=")[2]
            Path(folder).mkdir()
            summary = {"after": {"teacher": {"f1": 0.6}}}
            (Path(folder) / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr(parity_trainer, "run_module", run)
    own = data_sets(None)[0]
    for _ in range(2):
        assert parity_trainer.measure(own, "trainer", 1, 100, ()).score == 0.5
        assert parity_trainer.measure(own, "pair", 1, 100, ("a=b",)).score == 0.6
    (_, trainer), (_, pair) = calls
    data = Path(trainer[trainer.index("--data") + 1])
    assert f"data.train={(data / 'train').resolve()}.jsonl" in pair
    assert pair[-1] == "a=b"


def test_the_table_has_a_column_for_each_variant():
    scores = [
        Score("ner", "mine", "trainer", 600, 5, 0, 0.5),
        Score("ner", "mine", "trainer", 600, 5, 1, 0.6),
        Score("ner", "mine", "pair", 600, 5, 0, 0.7),
    ]
    row = parity_trainer.markdown(scores).splitlines()[-1]
    assert row.endswith("| 0.5500 (0.5000–0.6000, 2 seeds) | 0.7000 (one seed) |")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("task", TASKS)
def test_every_variant_is_a_config(task, variant):
    own = TASKS[task]
    load_config(ROOT / "configs" / f"{own.config}.yaml", [*own.settings, *VARIANTS[variant]])


def test_a_variant_without_its_data_is_left_out(tmp_path):
    def names(**given: Any) -> list[tuple[str, str]]:
        found = study_alone.wanted(["ner", "intents"], ["today", "text"], 1, Conditions(**given))
        return [(task, variant) for _, task, variant in found]

    assert names() == [("ner", "today")]
    assert names(num_rows=100) == [("ner", "today"), ("ner", "text")]
    assert names(data=tmp_path) == [("ner", "today"), ("ner", "text"), ("intents", "today")]


def test_text_without_labels_is_of_the_rows_that_were_not_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(study_alone, "RUNS", tmp_path)
    monkeypatch.setattr(parity_trainer, "RUNS", tmp_path)
    calls: list[list[str]] = []

    def run(_: str, arguments: list[str], *__: Any, **___: Any) -> None:
        calls.append(arguments)
        raise SideError("not run")

    monkeypatch.setattr(study_alone, "run_module", run)
    with pytest.raises(SideError):
        study_alone.measure("ner", "text twice", 0, Conditions(num_rows=100, precision="bf16"))
    (key,) = [word for word in calls[0] if word.startswith("data.unlabelled=")]
    (file,) = json.loads(key.partition("=")[2])
    assert len(Path(file).read_text().splitlines()) > 1000
    assert "precision=bf16" in calls[0]
    with pytest.raises(SideError):
        study_alone.measure("ner", "text", 0, Conditions(data=tmp_path))
    other = str(tmp_path / "ner" / "redocred" / "train.jsonl")
    assert any(other in word for word in calls[1] if word.startswith("data.unlabelled="))


def test_a_study_goes_on_and_keeps_what_its_table_has(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(study_alone, "RUNS", tmp_path)
    done = tmp_path / "ner-1278-today-fp32-seed0"
    done.mkdir()
    summary = {
        "after": {"teacher": {"f1": 0.8}, "student_alone": {"f1": 0.6}},
        "depths": {"2": {"student_alone": {"f1": 0.5}}},
        "train_s": 3.0,
    }
    (done / "summary.json").write_text(json.dumps(summary))

    def fail(*_: Any, **__: Any) -> None:
        raise SideError("no memory")

    monkeypatch.setattr(study_alone, "run_module", fail)
    found = study_alone.measure("ner", "today", 0, Conditions())
    assert found.scores == {"teacher": 0.8, "student_alone": 0.6, "student_alone, depth 2": 0.5}
    with pytest.raises(SideError):
        study_alone.measure("ner", "values", 0, Conditions())
    old = Outcome("ner", "today", 1278, 0, {"teacher": 0.1, "student_alone": 0.1}, 1.0)
    other = Outcome("ner", "values", 1278, 1, {"teacher": 0.8, "student_alone": 0.7}, 1.0)
    rows = study_alone.markdown(study_alone.merged([other, old], [found])).splitlines()[-3:]
    assert rows[0] == "| ner | 1278 | fp32 | today | 1 | 0.8000 | 0.6000 | 75.0% |"
    assert rows[1] == "| ner | 1278 | fp32 | today, depth 2 | 1 | 0.8000 | 0.5000 | 62.5% |"
    assert rows[2] == "| ner | 1278 | fp32 | values | 1 | 0.8000 | 0.7000 | 87.5% |"
