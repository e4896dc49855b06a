"""The study of queries: what it runs, in which order, and its tables."""

from __future__ import annotations

import json

import pytest

from benchmarks.study_queries import do_runs, markdown, run_folder, scores, train
from benchmarks.study_queries_plan import TASKS
from tests.helpers import ROOT
from tsarch.blueprint import resolve
from tsarch.config_loading import load_config
from tsarch.tasks.registry import table_metrics

QA = TASKS[0]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_method_has_a_config_with_its_mode(task, monkeypatch):
    monkeypatch.chdir(ROOT)
    for method in task.methods:
        taught = () if method.taught_by is None else ("distillation.from_run=runs/x",)
        blueprint = resolve(load_config(method.config, [*method.settings, *taught]))
        assert method.mode in blueprint.modes
        assert task.metric in table_metrics(blueprint.task.name)
        assert method.reads_once == (blueprint.task.query == "student")
        assert blueprint.runner.is_one_process


def test_runs_that_are_done_are_not_done_again_and_teachers_come_first(tmp_path):
    done = []

    def run(folder, task, method, seed):
        done.append((seed, method.name))
        own = run_folder(folder, task, method, seed)
        own.mkdir(parents=True)
        after = {method.mode: {task.metric: 0.5 + seed / 10}}
        (own / "summary.json").write_text(json.dumps({"after": after}))

    part = QA.with_methods(["taught", "question-aware"])
    do_runs(tmp_path, [part], [0], run, lambda _: None)
    do_runs(tmp_path, [part], [0, 1, 2], run, lambda _: None, at_once=1)
    expected = [(0, "question-aware"), (0, "taught")]
    expected += [(seed, name) for name in ("question-aware", "taught") for seed in (1, 2)]
    assert done == expected
    assert scores(tmp_path, QA, QA.method("taught"), [0, 1, 2]) == [0.5, 0.6, 0.7]
    assert scores(tmp_path, QA, QA.method("small"), [0]) == []


def test_a_run_goes_on_if_it_has_a_checkpoint_and_is_told_its_teacher(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(
        "benchmarks.study_queries.run_module",
        lambda module, arguments, log, timeout_s, threads: called.append(arguments),
    )
    method = QA.method("taught")
    own = run_folder(tmp_path, QA, method, 1)
    (own / "logs").mkdir(parents=True)
    train(tmp_path, QA, method, 1)
    assert not own.exists(), "what has no checkpoint is done anew"
    (own / "checkpoints" / "step-3").mkdir(parents=True)
    train(tmp_path, QA, method, 1)
    assert ["--resume" in own for own in called] == [False, True]
    teacher = run_folder(tmp_path, QA, QA.method("question-aware"), 1)
    assert f"distillation.from_run={teacher}" in called[0]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_documents_have_queries(task, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = task.documents(3)
    assert len(found) == 3
    for document, queries in found:
        assert queries
        assert task.row(document, queries[0])


def test_a_table_has_the_cost_of_a_query_by_how_many_a_document_has():
    own = {"method": "x", "scores": [0.5, 0.6], "cost": {"read": 16.0, "ask": 2.0}}
    text = markdown({"qa": [{**own, "bytes": {"fp32": 1536.0, "int8": 388.0}}]})
    line = "| x | 0.5500 (0.5000–0.6000) | 2 | 18.0 | 6.0 | 3.0 | 2.2 | fp32 1,536, int8 388 |"
    assert line in text
