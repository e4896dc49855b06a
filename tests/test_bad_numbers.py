"""Losses that are not finite: no update anywhere, counted, and not too many in a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from tests.generative_configs import generative_config
from tests.helpers import local_crew, tiny_config, write_jsonl
from tests.suites.crews import Crews
from tests.suites.equivalence import Case, comparable
from tsarch.config import Config
from tsarch.errors import RunFailedError
from tsarch.launch.training import run_training
from tsarch.rank.process import RankProcess
from tsarch.rank.rank import Rank
from tsarch.stage.engine import spoiled_unless_finite
from tsarch.stage.student_stage import StudentStage
from tsarch.stage.teacher_stage import TeacherStage
from tsarch.telling.step_table import StepTable
from tsarch.topology import Stage, Topology


def spoil(stage: type[TeacherStage] | type[StudentStage], steps: set[int], replica: int = 0) -> Any:
    """Let a replica's losses of some steps be infinite; returns what undoes it."""
    old = stage.backward

    def backward(self: Any, step: int, micro_batch: int, last: bool) -> None:
        if step in steps and self.replica == replica:
            engine, own = self.engine, self.engine.backward
            engine.backward = lambda loss, last: own(loss * torch.inf, last)
            try:
                old(self, step, micro_batch, last)
            finally:
                engine.backward = own
        else:
            old(self, step, micro_batch, last)

    stage.backward = backward  # type: ignore[method-assign]

    def undo() -> None:
        stage.backward = old  # type: ignore[method-assign]

    return undo


def test_a_finite_loss_stays_and_another_spoils_its_whole_gradient():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    for factor in (1.0, torch.inf, torch.nan):
        x.grad = None
        spoiled_unless_finite((x * torch.tensor([factor, 0.0])).sum()).backward()
        expected = [1.0, 0.0] if factor == 1.0 else [torch.nan, torch.nan]
        torch.testing.assert_close(x.grad, torch.tensor(expected), equal_nan=True)


def skipped(reports: Any, table: StepTable) -> list[Any]:
    table.start_span(0.0)
    return [row["skipped"] for own in reports for row in table.add(own, 0)]


@pytest.mark.parametrize(
    ("schedule", "stage", "expected"),
    [
        # The table's update in `overlapped` is that of the teacher's batch and of the student's
        # one before it: both steps lack it.
        ("overlapped", TeacherStage, [0, 0, 1, 2, 0, 0]),
        ("sequential", StudentStage, [0, 0, 0, 2, 0, 0]),
        ("joint", StudentStage, [0, 0, 0, 3, 0, 0]),
    ],
)
def test_updates_with_a_bad_loss_are_left_out(tmp_path, schedule, stage, expected):
    config = tiny_config(
        tmp_path, topology={"runner": "local", "threads": 1}, schedule={"name": schedule}
    )
    rank: Rank
    crew = local_crew(config)
    rank = crew._rank
    undo = spoil(stage, {3})
    try:
        table = StepTable(crew.topology)
        assert skipped(crew.train(0, 6), table) == expected
    finally:
        undo()
    assert table.totals.bad_steps == sum(map(bool, expected))
    assert table.totals.bad_in_a_row == 0
    for engine in rank.parts.engines.values():
        assert all(bool(t.isfinite().all()) for t in engine.module.state_dict().values())
    assert bool(rank.parts.tied.table.storage.isfinite().all())


def test_too_many_in_a_row_end_the_run_with_the_batch(tmp_path):
    config = tiny_config(
        tmp_path,
        topology={"runner": "local", "threads": 1},
        schedule={"name": "sequential"},
        evaluation={"before": False},
        failure={"max_bad_steps": 2},
    )
    undo = spoil(TeacherStage, {2, 5, 6, 7})
    try:
        with pytest.raises(RunFailedError, match="in 3 steps in a row, from step 5") as caught:
            run_training(config)
    finally:
        undo()
    path = tmp_path / "run" / "bad-batches" / "step-5.json"
    assert f"The batch of step 5: {path}" in str(caught.value)
    batch = json.loads(path.read_text())
    assert [row["step"] for row in batch["rows"]] == [5, 6, 7]
    assert batch["rows"][0]["grad_norm_teacher"] is None
    arrays = load_file(path.with_suffix(".safetensors"))
    assert len(arrays["token_ids"]) == sum(len(c["tokens"]) for c in batch["contexts"])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["skipped"] for line in lines] == [0, 0, 2, 0, 0, 2, 2, 2]


PLACES = {
    "context": "Ida paints in Riga and in Turin .",
    "question": "Where does Ida paint ?",
    "answers": {"text": ["Riga"], "answer_start": [14]},
}
ONE_WORD_TASKS: dict[str, dict[str, Any]] = {
    "qa": PLACES,
    "classification": {"text": "Ida paints in Riga .", "label": "art"},
    "relation": {
        "tokens": ["Ida", "paints", "in", "Riga"],
        "head": [0, 1],
        "tail": [3, 4],
        "relation": "works_in",
    },
}


def saved_labels(config: Config) -> list[list[str]]:
    """Labels of each context of the batch that ended a run."""
    undo = spoil(TeacherStage, {0})
    try:
        with pytest.raises(RunFailedError, match="The batch of step 0: ") as caught:
            run_training(config)
    finally:
        undo()
    path = Path(str(caught.value).rpartition("The batch of step 0: ")[2])
    batch = json.loads(path.read_text())
    assert batch["contexts"]
    return [own["labels"] for own in batch["contexts"]]


ENDS_AT_ONCE: dict[str, Any] = {
    "topology": {"runner": "local", "threads": 1},
    "evaluation": {"before": False},
    "failure": {"max_bad_steps": 0},
}


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("qa", {("", "", "", "start+end", "", "", "", "")}),
        ("classification", {("art",) * 5}),
        ("relation", {("works_in",)}),
    ],
)
def test_the_batch_is_saved_with_the_labels_of_its_task(tmp_path, task, labels):
    rows = [{**ONE_WORD_TASKS[task], "id": str(number)} for number in range(8)]
    if task == "classification":
        rows[-1] = {**rows[-1], "label": "craft"}
    if task == "relation":
        rows[-1] = {**rows[-1], "relation": "born_in"}
    file = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    data = dict.fromkeys(("train", "validation", "test"), file)
    config = tiny_config(tmp_path, task={"name": task}, data=data, **ENDS_AT_ONCE)
    found = saved_labels(config)
    assert set(map(tuple, found)) & labels


def test_the_batch_of_a_generative_run_is_saved_with_its_targets(tmp_path):
    config = generative_config(tmp_path, "translation", "llama", **ENDS_AT_ONCE)
    for labels in saved_labels(config):
        assert labels[-1] == "<end>"
        assert set("".join(labels[:-1])) <= set("Ġabdeghilmnorstuvw")


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.replicas(3, 2, spoils=True)
def test_all_ranks_leave_the_same_updates_out_at_every_zero_stage(tmp_path: Path, crews: Crews):
    base = tiny_config(tmp_path, schedule={"epochs": 2})
    crews.close()
    for stages in ((0, 1), (2, 3), (3, 2), (1, 0)):
        config = comparable(base, Case("overlapped", "adamw", (3, 2), stages), 6)
        crew = crews.get(config, SpoiledProcess)
        table = StepTable(Topology.pair(3, 2))
        assert skipped(crew.train(0, 6), table) == [0, 0, 1, 2, 0, 0], stages
        stats = crew.stats()
        assert all(s.tied_max_abs_diff == 0.0 for s in stats[Stage.TEACHER])


class SpoiledProcess(RankProcess):
    """A rank in whose process the second teacher's loss of step 3 is infinite."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        spoil(TeacherStage, {3}, replica=1)
