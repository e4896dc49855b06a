"""What the study trains: a run of tsarch's, of both models or of one, or the usual distillation.

All use tsarch's own stages, batches, losses, optimizers and metrics, and the same batches.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from tsarch.blueprint import Blueprint, resolve
from tsarch.config import Config, Mode
from tsarch.data.feed import Feed
from tsarch.data.loader import evaluation_batches
from tsarch.data.window_passes import alone_passes
from tsarch.feeds import batch_plan, num_training_steps
from tsarch.losses.objective import LabelObjective
from tsarch.model_folder import load_table, load_weights, save_table, save_weights
from tsarch.models.construction import num_elements
from tsarch.models.student_model import StudentModel
from tsarch.parallel.link import LoopbackLink
from tsarch.parallel.table import Table
from tsarch.parallel.tied_embedding import TiedEmbedding
from tsarch.prepare import Prepared
from tsarch.rank.api import RankApi
from tsarch.rank.learning_rate import learning_rate_factor
from tsarch.rank.local_crew import LocalCrew
from tsarch.rank.wiring import local_wiring
from tsarch.records import TokenizedSplit
from tsarch.run.evaluate import JOINT_WEIGHTS, choose_and_evaluate, evaluate_modes
from tsarch.seeding import torch_seed
from tsarch.specs import PredictionSpec
from tsarch.stage.build import build_model, unpad
from tsarch.stage.engine import Engine, make_optimizer
from tsarch.stage.student_stage import StudentStage
from tsarch.stage.teacher_stage import TeacherStage
from tsarch.tasks.base import Metrics
from tsarch.tasks.registry import make_task
from tsarch.topology import PAIR, Stage, Topology

_OBJECTIVE = LabelObjective()
_ONE_EACH = Topology(PAIR, (1, 1))


class Learner(Protocol):
    """What the study's loop drives."""

    num_parameters: int

    def train(self, start: int, stop: int) -> None:
        """Train on the steps `start` … `stop` − 1."""

    def evaluate(self, split: str) -> dict[Mode, Metrics]:
        """Metrics of a split, by mode."""


def alone(config: Config, stage: Stage) -> Config:
    """The config of one of its models by itself, over the same contexts and so the same batches."""
    assert config.teacher is not None
    assert config.student is not None
    distillation = config.distillation.model_copy(
        update={"weight": 0.0, "hidden_weight": 0.0, "relation_weight": 0.0}
    )
    if stage is Stage.TEACHER:
        return config.model_copy(update={"student": None, "distillation": distillation})
    student = config.student
    if student.layers is not None:
        source = {"model": config.teacher.model, "config": config.teacher.config}
        student = student.model_copy(update=source)
    data = {
        "context_tokens": config.teacher.max_tokens,
        "tokenizer": config.data.tokenizer or config.teacher.model,
    }
    return config.model_copy(
        update={
            "teacher": None,
            "student": student,
            "distillation": distillation,
            "data": config.data.model_copy(update=data),
        }
    )


class Trained:
    """A run of tsarch's, in this process."""

    def __init__(self, blueprint: Blueprint, prepared: Prepared) -> None:
        self._splits = prepared.splits
        self._task = make_task(blueprint.task.name, prepared.labels, blueprint.task)
        self._crew = LocalCrew(blueprint, prepared)
        stats = next(iter(self._crew.stats().values()))[0]
        self.num_parameters = sum(stats.stage_parameters.values())
        self._weight = 0.5

    def train(self, start: int, stop: int) -> None:
        """Train."""
        for _ in self._crew.train(start, stop):
            pass

    def evaluate(self, split: str) -> dict[Mode, Metrics]:
        """All modes that there are; the weight of `joint` is chosen on validation."""
        own = self._splits[split]
        if split == "validation":
            predictions = self._crew.evaluate(split, JOINT_WEIGHTS)
            found = choose_and_evaluate(self._task, own, predictions)
            self._weight = found.joint_weight
            return found.metrics
        predictions = self._crew.evaluate(split, [self._weight])
        return evaluate_modes(self._task, own, predictions, self._weight).metrics

    def keep(self, folder: Path) -> None:
        """Write the weights into an existing folder."""
        self._crew.ask(RankApi.save, folder)


class Distilled:
    """The usual distillation: the small model learns on its windows from the predictions of a
    teacher that was trained before and stays as it is. The two share no table.

    Args:
        teacher_folder: weights of the teacher.
    """

    def __init__(self, config: Config, prepared: Prepared, teacher_folder: Path) -> None:
        blueprint = resolve(config)
        train = prepared.splits["train"]
        self._splits = prepared.splits
        self._task = make_task(blueprint.task.name, prepared.labels, blueprint.task)
        self._evaluation_tokens = blueprint.batches.evaluation_tokens
        num_labels = len(prepared.labels)
        engine, self._tied = _stage_parts(blueprint, Stage.STUDENT, num_labels, train)
        assert isinstance(engine.module, StudentModel)
        self.num_parameters = self._tied.table.storage.numel() + _own_parameters(engine.module)
        arriving = PredictionSpec(num_labels, are_logits=False)
        every_pass = replace(blueprint.distillation, passes="all")
        self._student = StudentStage(
            Stage.STUDENT, engine, self._tied, 0, arriving, _OBJECTIVE, every_pass
        )
        engine, tied = _stage_parts(blueprint, Stage.TEACHER, num_labels, train)
        engine.load_state_dict(load_weights(teacher_folder, Stage.TEACHER))
        tied.table.load(load_table(teacher_folder))
        engine.train(False)
        self._teacher = TeacherStage(Stage.TEACHER, engine, tied, 0, _OBJECTIVE)
        self._link = LoopbackLink(torch.float32)
        plan = batch_plan(blueprint, train)
        self._num_steps = num_training_steps(blueprint, plan)
        self._shape = blueprint.learning_rate
        self._feed = Feed(
            train,
            _ONE_EACH,
            1,
            plan.contexts,
            lambda _, c: alone_passes(train, c),
            send_predictions=True,
            send_all=True,
        )
        torch.manual_seed(torch_seed(blueprint.seed, "dropout", 0))

    def train(self, start: int, stop: int) -> None:
        """One update of the small model and of its table a step."""
        student, feed, link = self._student, self._feed, self._link
        student.engine.train(True)
        for step in range(start, stop):
            self._teacher.forward(feed, step, 0, update=False)
            self._teacher.send(feed, link, step, 0, Stage.STUDENT)
            student.receive(feed, link, step, 0, Stage.TEACHER)
            student.forward(feed, step, 0, update=True)
            student.backward(step, 0, last=True)
            shape = self._shape
            factor = learning_rate_factor(step, self._num_steps, shape.warmup, shape.decay)
            touched = student.rows.take(step)
            scale = student.engine.grad_scale
            self._tied.start(step, touched.token_ids, touched, scale, factor)
            self._tied.finish(step)
            student.engine.step(factor)

    def evaluate(self, split: str) -> dict[Mode, Metrics]:
        """The one mode that a model by itself has."""
        own = self._splits[split]
        batches = evaluation_batches(own.context_lengths, self._evaluation_tokens)
        student_alone = Topology.alone(Stage.STUDENT)
        feed = Feed(
            own, student_alone, 1, lambda b: batches[b], lambda _, c: alone_passes(own, c), False
        )
        collector = self._task.collector([])
        self._student.engine.train(False)
        self._student.on_output = collector.add
        for batch in range(len(batches)):
            self._student.forward(feed, batch, 0, update=False)
        self._student.on_output = None
        return evaluate_modes(self._task, own, [collector.result()], 0.0).metrics

    def keep(self, folder: Path) -> None:
        """Write the weights into an existing folder."""
        state = self._student.engine.state_dict()
        assert state is not None
        save_weights(folder, Stage.STUDENT, state)
        save_table(folder, self._tied.table.values())


def _stage_parts(
    blueprint: Blueprint, stage: Stage, num_labels: int, train: TokenizedSplit
) -> tuple[Engine, TiedEmbedding]:
    """A stage's engine, and a table that starts from its own model and is its own."""
    blueprint = blueprint.altered(embedding={"init": stage.name})
    built = build_model(blueprint, stage, num_labels)
    assert built.table is not None
    unpad(blueprint, stage, built.module)
    spec = blueprint.table.optimizer
    tied = TiedEmbedding(
        Table(built.table, np.unique(train.token_ids)),
        lambda rows: make_optimizer([{"params": [rows], "weight_decay": 0.0}], spec),
        spec.learning_rate,
        spec.clip_norm,
        blueprint.table.exchange,
        None,
        _ONE_EACH,
        num_local_stages=1,
    )
    optimizer = blueprint.stages[stage].optimizer
    return local_wiring(blueprint).make_engine(stage, built.module, optimizer), tied


def _own_parameters(module: StudentModel) -> int:
    """Parameters that the small model uses: a student's without what feeds it."""
    unused = 0 if module.bridge is None else num_elements(module.bridge) + len(module.no_teacher)
    if module.shortcut is not None:
        unused += num_elements(module.shortcut)
    return num_elements(module) - unused
