"""One stage by itself, and a third one: what stages do follows from the graph, not from names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import tiny_blueprint, tiny_raw
from tsarch.blueprint import Blueprint
from tsarch.config import Config
from tsarch.config_loading import parse_config
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.prepare import prepare_data
from tsarch.rank.rank import Rank
from tsarch.rank.wiring import local_wiring
from tsarch.run.saved_run import evaluate_run
from tsarch.topology import PAIR, Graph, Stage, Topology, make_stage

SECOND = make_stage("student_b", "windows")


def pair(folder: Path, schedule: str, frozen_table: bool = False) -> Blueprint:
    """No dropout: what one stage draws must not change what another one sees."""
    return tiny_blueprint(
        folder,
        schedule={"name": schedule, "micro_batches": 2},
        teacher={"dropout": 0.0},
        student={"dropout": 0.0},
        embedding={"frozen": frozen_table},
        topology={"runner": "local", "device": "cpu", "threads": 1},
    )


def with_second_student(blueprint: Blueprint) -> Blueprint:
    """The same teacher feeding another student too, which reads the same windows."""
    own = replace(blueprint.stages[Stage.STUDENT], stage=SECOND)
    stages = {**blueprint.stages, SECOND: own}
    return replace(blueprint, stages=stages, topology=Topology(Graph.of(stages), (1, 1, 1)))


def losses(blueprint: Blueprint, num_steps: int = 4) -> list[dict[str, float]]:
    """Losses of every step, by part, of all stages."""
    rank = Rank(blueprint, prepare_data(blueprint), local_wiring(blueprint))
    found: list[dict[str, float]] = [{} for _ in range(num_steps)]
    for report in rank.training.advance(rank.training.begin(0, num_steps, None)):
        if report.step is not None:
            found[report.step] |= report.losses.means
    return found


def test_a_graph_knows_who_feeds_whom():
    both = Graph.of([Stage.TEACHER, Stage.STUDENT, SECOND])
    assert both.targets(Stage.TEACHER) == (Stage.STUDENT, SECOND)
    assert both.sources(SECOND) == (Stage.TEACHER,)
    assert [both.depth(stage) for stage in both.stages] == [0, 1, 1]
    assert PAIR.modes == ("teacher", "student", "joint", "student_alone")
    assert Graph.of([Stage.TEACHER]).modes == ("teacher",)
    assert Graph.of([Stage.STUDENT]).modes == ("student_alone",)


@pytest.mark.parametrize("schedule", ["sequential", "overlapped"])
def test_a_second_student_changes_nothing_for_the_others(tmp_path, schedule):
    """With a frozen table the students share nothing but what the teacher sends."""
    blueprint = pair(tmp_path, schedule, frozen_table=True)
    one, two = losses(blueprint), losses(with_second_student(blueprint))
    parts = {part for step in one for part in step}
    assert [{part: step[part] for part in parts} for step in two] == one
    assert all({"student_b", "student_b_alone"} <= set(step) for step in two)
    assert all(step["student_b"] != step["student"] for step in two)  # weights of its own


@pytest.mark.parametrize("schedule", ["sequential", "overlapped", "joint"])
def test_all_of_three_stages_learn_on_one_table(tmp_path, schedule):
    blueprint = with_second_student(pair(tmp_path, schedule))
    rank = Rank(blueprint, prepare_data(blueprint), local_wiring(blueprint))
    before = {s: e.module.head.linear.weight.clone() for s, e in rank.parts.engines.items()}
    table = rank.parts.tied.table.values()
    rank.training.advance(rank.training.begin(0, 3, None))
    for stage, weight in before.items():
        assert not torch.equal(rank.parts.engines[stage].module.head.linear.weight, weight)
    assert not torch.equal(rank.parts.tied.table.values(), table)


def test_in_joint_the_gradients_of_both_students_reach_the_teacher(tmp_path):
    """The teacher's step is the sum of its own, the first student's and the second's."""

    def teacher_step(blueprint: Blueprint) -> torch.Tensor:
        rank = Rank(blueprint, prepare_data(blueprint), local_wiring(blueprint))
        (weight,) = (
            p
            for name, p in rank.parts.engines[Stage.TEACHER].module.named_parameters()
            if name.endswith("layer.0.attention.self.query.weight")
        )
        before = weight.detach().clone()
        rank.training.advance(rank.training.begin(0, 1, None))
        return weight.detach() - before

    plain = {"name": "sgd", "clip_norm": 0.0, "teacher_learning_rate": 1.0, "weight_decay": 0.0}
    blueprint = pair(tmp_path, "joint").altered(
        optimizer=plain,
        learning_rate={"warmup": 0.0, "decay": "constant"},
        embedding={"frozen": True},
    )
    three = with_second_student(blueprint)
    second = replace(
        three,
        stages={s: own for s, own in three.stages.items() if s is not Stage.STUDENT},
        topology=Topology(Graph.of([Stage.TEACHER, SECOND]), (1, 1)),
    )
    alone = replace(
        blueprint,
        stages={Stage.TEACHER: blueprint.stages[Stage.TEACHER]},
        topology=Topology.alone(Stage.TEACHER),
    )
    own = teacher_step(alone)
    first, other = teacher_step(blueprint) - own, teacher_step(second) - own
    assert float(first.abs().max()) > 1e-6
    assert torch.allclose(teacher_step(three) - own, first + other, rtol=1e-3, atol=1e-7)


def solo_raw(folder: Path, stage: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """A tiny run of one model."""
    raw = tiny_raw(
        folder,
        run={"folder": str(folder / "run")},
        topology={"runner": "local", "threads": 1},
        checkpoint={"every_steps": 2},
        schedule={"epochs": 2},
        **sections,
    )
    raw.pop("distillation", None)
    own = raw["student" if stage == "student" else "teacher"]
    if stage == "student":
        raw["data"].setdefault("tokenizer", raw["teacher"].get("model"))
        layers = own.pop("layers", None)
        if layers is not None:
            own.update(
                {"config": raw["teacher"].get("config"), "model": raw["teacher"].get("model")}
            )
            own = {key: value for key, value in own.items() if value is not None}
            raw["student"] = own
    raw.pop("teacher" if stage == "student" else "student")
    raw.get("embedding", {}).pop("init", None)
    return raw


@pytest.mark.parametrize("stage", ["teacher", "student"])
@pytest.mark.parametrize("schedule", ["overlapped", "joint"])
def test_one_model_by_itself_trains_resumes_and_evaluates_again(tmp_path, stage, schedule):
    config = parse_config(solo_raw(tmp_path, stage), "solo")
    config = config.model_copy(
        update={"schedule": config.schedule.model_copy(update={"name": schedule})}
    )
    summary = run_training(config)
    mode = "teacher" if stage == "teacher" else "student_alone"
    other = "student" if stage == "teacher" else "teacher"
    assert list(summary["after"]) == [mode]
    assert summary[other] is None
    assert summary[stage]["parameters"] > 0
    folder = tmp_path / "run"
    assert (folder / "report.html").is_file()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row[f"loss_{stage}"] > 0 and f"loss_{other}" not in row for row in rows)
    again = evaluate_run(folder, "test").evaluation
    assert again.metrics == summary["after"]
    with pytest.raises(UserError, match="has no such mode"):
        evaluate_run(folder, "test", "joint")


def test_a_teacher_by_itself_has_the_losses_that_it_has_in_a_pair(tmp_path):
    """With a frozen table the pair's teacher knows nothing of its student."""
    blueprint = pair(tmp_path, "sequential", frozen_table=True)
    alone = replace(
        blueprint,
        stages={Stage.TEACHER: blueprint.stages[Stage.TEACHER]},
        topology=Topology.alone(Stage.TEACHER),
    )
    assert [step["teacher"] for step in losses(alone)] == [
        step["teacher"] for step in losses(blueprint)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distillation": {"weight": 0.5}}, "distillation.weight can't be asked of a teacher"),
        ({"evaluation": {"monitor": "student"}}, "evaluation.monitor: student can't be asked"),
        ({"embedding": {"init": "student"}}, "embedding.init: student can't be asked"),
        ({"topology": {"student": {"replicas": 2}}}, "topology.student can't be asked"),
        ({"schedule": {"alternation": {"teacher_steps": 2}}}, "schedule.alternation can't be"),
    ],
)
def test_what_takes_two_is_refused_of_one(tmp_path, change, message):
    raw = solo_raw(tmp_path, "teacher")
    for section, values in change.items():
        raw[section] = {**raw.get(section, {}), **values}
    with pytest.raises(UserError, match=message):
        parse_config(raw, "solo")


def test_a_config_of_no_model_is_refused(tmp_path):
    raw = solo_raw(tmp_path, "teacher")
    del raw["teacher"]
    with pytest.raises(UserError, match="give `teacher`, `student` or both"):
        parse_config(raw, "solo")


def test_a_student_by_itself_takes_layers_of_its_own_model(tmp_path):
    raw = solo_raw(tmp_path, "student")
    raw["student"] = {"layers": [0], "max_tokens": 32}
    with pytest.raises(UserError, match=r"student\.layers needs student\.model"):
        parse_config(raw, "solo")
    raw["student"] = {"model": "some/model", "layers": [0], "max_tokens": 32}
    assert isinstance(parse_config(raw, "solo"), Config)
