"""The study: what runs next, going on after an interruption, tables; every method on a tiny job."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import study_run
from benchmarks.study import do_runs, earlier_summaries, summaries
from benchmarks.study_cost import InferenceCost, measure
from benchmarks.study_models import Distilled, Trained, alone
from benchmarks.study_plan import (
    METHODS,
    OWN_MODE,
    RATES,
    SEEDS,
    WITH_TEACHER,
    RunKey,
    RunResult,
    chosen_rates,
    ready_runs,
)
from benchmarks.study_run import first_rows, read_results, result_file, run_config, train
from benchmarks.study_table import (
    differences,
    gap_recovered,
    line_of,
    markdown,
    plot,
    spread,
    summarise,
)
from benchmarks.study_tasks import TASKS
from tests.helpers import tiny_config
from tsarch.blueprint import resolve
from tsarch.config import MODES
from tsarch.feeds import batch_plan
from tsarch.prepare import prepare_data
from tsarch.telling.run_folder import write_atomically
from tsarch.topology import Stage

SCORES = {"teacher": 0.7, "small": 0.5, "distilled": 0.6, "ours": 0.69}
BEST = {"teacher": 1e-4, "small": 1e-4, "distilled": 1e-4, "ours": 3e-4}
"""Method → the rate on which it scores so."""
NER = TASKS[0]
NER_RATES = RATES["ner"]
COST = InferenceCost(
    context_tokens=100.0,
    window_tokens=25.0,
    windows_per_context=4.0,
    contexts_per_document=2.0,
    teacher_context_ms=80.0,
    fed_window_ms=10.0,
    alone_window_ms=9.0,
)


def a_result(key: RunKey) -> RunResult:
    worse = 0.0 if key.rates[-1] == BEST[key.method] else 0.1
    score = SCORES[key.method] + 0.01 * key.seed - worse
    modes = MODES if key.method == "ours" else (OWN_MODE[key.method],)
    metrics = {mode: {"precision": 1.0, "recall": score, "f1": score} for mode in modes}
    return RunResult(
        key=key,
        settings=NER.digest(key.method),
        main_metric="f1",
        validation=metrics,
        test=metrics,
        steps=10,
        parameters=1000,
        train_s=60.0,
    )


def write(folder: Path, key: RunKey) -> None:
    file = result_file(folder, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all, as a run writes it: other threads of the study read what is there.
    write_atomically(file, a_result(key).model_dump_json())


def finished(task="ner"):
    results = {}
    while ready := ready_runs(results, [task]):
        results |= {key: a_result(key) for key in ready}
    return results


def test_every_method_is_tuned_alike_with_the_first_seed():
    ready = ready_runs({}, ["ner"])
    assert {(key.method, key.rates, key.seed) for key in ready} == {
        (method, (rate,), SEEDS[0]) for method in ("teacher", "small") for rate in NER_RATES
    }
    results = {key: a_result(key) for key in ready}
    later = [key for key in ready_runs(results, ["ner"]) if key.method in WITH_TEACHER]
    assert {(key.method, key.rates, key.seed) for key in later} == {
        (method, (BEST["teacher"], rate), SEEDS[0]) for method in WITH_TEACHER for rate in NER_RATES
    }
    assert chosen_rates(results, "ner", "ours") is None
    results = finished()
    assert chosen_rates(results, "ner", "ours") == (1e-4, 3e-4)
    assert chosen_rates(results, "ner", "distilled") == (1e-4, 1e-4)
    assert len(results) == len(METHODS) * (len(SEEDS) + len(NER_RATES) - 1)


def test_the_rates_of_ours_are_those_of_the_answers_with_and_without_the_teacher():
    key = RunKey(task="ner", method="ours", rates=(1e-4, 3e-4), seed=0)
    result = a_result(key)
    scores = {"teacher": 0.9, "student": 0.8, "joint": 0.7, "student_alone": 0.5}
    validation = {mode: {"f1": score} for mode, score in scores.items()}
    assert result.model_copy(update={"validation": validation}).score == pytest.approx(0.6)


def test_a_distilled_run_waits_for_its_teacher():
    results = finished()
    waiting = next(key for key in results if key.method == "distilled" and key.seed == 1)
    teacher = results.pop(waiting.teacher)
    del results[waiting]
    assert ready_runs(results, ["ner"]) == [waiting.teacher]
    assert ready_runs({**results, waiting.teacher: teacher}, ["ner"]) == [waiting]


def test_a_study_goes_on_where_it_was(tmp_path):
    started = []

    def run(folder: Path, key: RunKey) -> None:
        started.append(key)
        if len(started) == 5:
            raise KeyboardInterrupt
        write(folder, key)

    with pytest.raises(KeyboardInterrupt):
        do_runs(tmp_path, [NER], run, lambda _: None, num_processes=1)
    done = set(read_results(tmp_path, [NER]))
    assert len(done) == 4
    again = len(started)
    results = do_runs(tmp_path, [NER], run, lambda _: None)
    assert set(results) == set(finished())
    assert done.isdisjoint(started[again:])
    assert len(started[again:]) == len(results) - len(done)


def test_a_run_by_itself_needs_no_folder(tmp_path, monkeypatch):
    key = RunKey(task="ner", method="small", rates=(NER_RATES[0],), seed=0)
    monkeypatch.setattr(study_run, "train", lambda *_: a_result(key))
    study_run.run(tmp_path / "new", key, [NER])
    assert set(read_results(tmp_path / "new", [NER])) == {key}


def test_results_of_other_settings_are_not_taken_up(tmp_path):
    key = RunKey(task="ner", method="small", rates=(NER_RATES[0],), seed=0)
    write(tmp_path, key)
    assert set(read_results(tmp_path, [NER])) == {key}
    assert not read_results(tmp_path, [replace(NER, epochs=9)])


def test_the_digest_leaves_out_what_a_method_ignores(tmp_path):
    text = NER.config.read_text()
    task = replace(NER, config=tmp_path / "task.yaml")

    def digests(new: str) -> dict[str, bool]:
        """Method → whether its digest stays."""
        task.config.write_text(text)
        before = {method: task.digest(method) for method in METHODS}
        task.config.write_text(new)
        return {method: task.digest(method) == before[method] for method in METHODS}

    assert all(digests(f"# a comment\n{text}").values())
    ours = digests(text.replace("alone_weight: 1.0", "alone_weight: 7.0"))
    assert ours == {method: method != "ours" for method in METHODS}
    assert not any(digests(text.replace("layers: [0, 2, 5]", "layers: [0, 5]")).values())


def test_the_usual_distillation_does_not_change_with_ours(tmp_path):
    key = RunKey(task="ner", method="distilled", rates=(1e-4, 3e-4), seed=1)
    distillation = run_config(NER, tmp_path, key).distillation
    assert (distillation.weight, distillation.temperature) == (0.5, 2.0)


def test_the_summary_is_of_the_chosen_rates(tmp_path):
    summary = summarise(finished(), "ner", {"teacher": 22, "student_alone": 17}, COST)
    assert [line.name for line in summary.lines] == [
        "teacher alone",
        "small model alone",
        "small model, distilled",
        *(f"ours: `{mode}`" for mode in MODES),
    ]
    teacher = line_of(summary, "teacher", "teacher")
    assert teacher.metrics["f1"] == spread([0.7, 0.71, 0.72])
    assert teacher.metrics["f1"].text() == ".7100 (.7000–.7200)"
    assert teacher.seeds == list(SEEDS)
    assert line_of(summary, "ours", "student_alone").parameters == 17
    assert line_of(summary, "ours", "joint").parameters == 1000
    assert line_of(summary, "distilled", "student_alone").train_s.mean == 120
    assert summary.tried["teacher alone"] == {"0.0001": 0.7, "0.0003": pytest.approx(0.6)}
    assert gap_recovered(summary, "f1") == pytest.approx(0.95)
    assert gap_recovered(summary, "precision") is None, "all have the same"
    ahead = "ours: `student_alone` − small model alone"
    assert differences(summary, "f1")[ahead] == pytest.approx([0.19, 0.19, 0.19])
    text = markdown({"ner": summary})
    assert f"| {ahead} | +0.0, +0.0, +0.0: +0.0 | +19.0, +19.0, +19.0: +19.0 |" in text
    assert "| ours: `student` | 1.0000 (1.0000–1.0000) | .7000 (.6900–.7100)" in text
    assert "recovers: precision – (the teacher isn't better), " in text
    assert "f1 95%." in text
    plot({"ner": summary}, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 5000


def test_differences_are_of_the_same_seed():
    results = {
        key: run for key, run in finished().items() if (key.method, key.seed) != ("small", SEEDS[1])
    }
    summary = summarise(results, "ner", {}, COST)
    found = differences(summary, "f1")["ours: `student_alone` − small model alone"]
    assert found == pytest.approx([0.19, 0.19])


def test_tasks_that_are_not_run_keep_their_tables(tmp_path):
    assert earlier_summaries(tmp_path) == {}
    summary = summarise(finished(), "ner", {"teacher": 22, "student_alone": 17}, COST)
    (tmp_path / "study.json").write_text(json.dumps({"ner": summary.model_dump()}))
    assert markdown(earlier_summaries(tmp_path)) == markdown({"ner": summary})


def test_a_task_with_a_method_missing_has_no_table(tmp_path):
    results = {key: run for key, run in finished().items() if key.method != "ours"}
    assert summaries(tmp_path, results, [NER]) == {}


def test_the_cost_of_a_window_falls_with_what_its_context_serves():
    assert [COST.fed_ms(count) for count in (1, 4, 16)] == [90.0, 30.0, 15.0]
    assert COST.document_ms("teacher") == 160
    assert COST.document_ms("student") == 240
    assert COST.document_ms("student_alone") == 72


def test_subsets_are_the_first_rows(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("a\nb\nc\n")
    assert first_rows(file, 2, tmp_path / "part").read_text() == "a\nb\n"


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_has_a_sound_config(tmp_path, task):
    key = RunKey(task=task.name, method="ours", rates=(1e-4, 3e-4), seed=1)
    config = run_config(task, tmp_path, key)
    assert config.task.name == task.name
    rates = config.optimizer
    assert (rates.teacher_learning_rate, rates.student_learning_rate) == key.rates
    assert rates.embedding_learning_rate == min(key.rates)


RUN = {"rates": (2e-3,), "seed": 0}


def test_every_method_trains(tmp_path):
    config = tiny_config(tmp_path, data={"cache_folder": str(tmp_path / "cache")})
    weights = {method: tmp_path / method for method in METHODS}
    found = {}
    for method in METHODS:
        key = RunKey(task="ner", method=method, **RUN)
        teacher = weights["teacher"] if method == "distilled" else None
        found[method] = train(config, key, "", weights[method], teacher)
    assert len({result.steps for result in found.values()}) == 1
    assert list(found["teacher"].test) == ["teacher"]
    assert list(found["distilled"].test) == ["student_alone"]
    assert list(found["ours"].test) == list(MODES)
    assert found["small"].parameters < found["teacher"].parameters < found["ours"].parameters
    cost = measure(config, num_contexts=2)
    assert cost.alone_window_ms > 0


def weights_after(learner: Trained | Distilled, folder: Path) -> bytes:
    """The table after two steps."""
    learner.train(0, 2)
    folder.mkdir()
    learner.keep(folder)
    return (folder / "embedding.safetensors").read_bytes()


def test_a_distilled_model_learns_from_its_teachers_predictions(tmp_path):
    tables = {}
    for name, weight in (("first", 0.5), ("again", 0.5), ("without", 0.0)):
        config = tiny_config(tmp_path, distillation={"weight": weight})
        prepared = prepare_data(resolve(config))
        teacher = tmp_path / f"{name}-teacher"
        teacher.mkdir()
        Trained(resolve(alone(config, Stage.TEACHER)), prepared).keep(teacher)
        tables[name] = weights_after(Distilled(config, prepared, teacher), tmp_path / name)
    assert tables["first"] == tables["again"]
    assert tables["first"] != tables["without"]


def test_models_by_themselves_ignore_what_only_ours_uses(tmp_path):
    student = {"bridge_scale": 0.0, "shortcut": True, "alone_weight": 3.0, "teacher_dropout": 0.0}
    student["fed_weight"] = 0.1
    configs = (
        tiny_config(tmp_path, student={"shortcut": False}),
        tiny_config(tmp_path, student=student, distillation={"weight": 0.1, "passes": "alone"}),
    )
    tables, sizes = [], set()
    for place, config in enumerate(configs):
        prepared = prepare_data(resolve(config))
        small = Trained(resolve(alone(config, Stage.STUDENT)), prepared)
        tables.append(weights_after(small, tmp_path / str(place)))
        sizes.add(small.num_parameters)
    assert tables[0] == tables[1]
    assert len(sizes) == 1


def test_a_model_by_itself_sees_the_batches_of_the_pair(tmp_path):
    config = tiny_config(tmp_path)
    plans = []
    for own in (config, alone(config, Stage.TEACHER), alone(config, Stage.STUDENT)):
        blueprint = resolve(own)
        plan = batch_plan(blueprint, prepare_data(blueprint).splits["train"])
        plans.append([plan.contexts(step).tolist() for step in range(plan.num_steps)])
    assert plans[0] == plans[1] == plans[2]
