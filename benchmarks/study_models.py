"""What the study trains: one model by itself, with or without a teacher to learn from, or ours.

All use tsarch's own stages, batches, losses, optimizers and metrics. A model by itself is a stage
without the other: its table is its own, and the student goes over every window without the bridge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tsarch.blueprint import Blueprint
from tsarch.config import Mode
from tsarch.data.feed import Feed
from tsarch.data.loader import evaluation_batches
from tsarch.data.window_passes import training_passes
from tsarch.feeds import batch_plan, num_training_steps
from tsarch.losses.objective import LabelObjective
from tsarch.model_folder import load_table, load_weights, save_table, save_weights
from tsarch.models.construction import num_elements
from tsarch.models.student_model import StudentModel
from tsarch.parallel.link import LoopbackLink
from tsarch.parallel.table import Table
from tsarch.parallel.tied_embedding import TiedEmbedding
from tsarch.prepare import Prepared
from tsarch.rank.learning_rate import learning_rate_factor
from tsarch.rank.local_crew import LocalCrew
from tsarch.rank.wiring import local_wiring
from tsarch.records import IntArray, TokenizedSplit
from tsarch.run.evaluate import JOINT_WEIGHTS, choose_and_evaluate, evaluate_modes
from tsarch.seeding import torch_seed
from tsarch.stage.build import build_model
from tsarch.stage.engine import make_optimizer
from tsarch.stage.student_stage import StudentStage
from tsarch.stage.teacher_stage import TeacherStage
from tsarch.tasks.base import Metrics, Task
from tsarch.tasks.collect import WindowOutputs
from tsarch.tasks.registry import make_task
from tsarch.topology import Stage, Topology

_OBJECTIVE = LabelObjective()
_ONE = Topology.pair(1, 1)


class Learner(Protocol):
    """What the study's loop drives."""

    num_parameters: int

    def train(self, start: int, stop: int) -> None:
        """Train on the steps `start` … `stop` − 1."""

    def evaluate(self, split: str) -> dict[Mode, Metrics]:
        """Metrics of a split, by mode."""


class Ours:
    """Teacher and student trained by tsarch, in this process."""

    def __init__(self, blueprint: Blueprint, prepared: Prepared) -> None:
        self._splits = prepared.splits
        self._task = make_task(blueprint.task.name, prepared.labels)
        self._crew = LocalCrew(blueprint, prepared)
        stats = self._crew.stats()[Stage.TEACHER][0]
        self.num_parameters = sum(stats.stage_parameters.values())
        self._weight = 0.5

    def train(self, start: int, stop: int) -> None:
        """Train."""
        for _ in self._crew.train(start, stop):
            pass

    def evaluate(self, split: str) -> dict[Mode, Metrics]:
        """All four modes; the weight of `joint` is chosen on validation."""
        own = self._splits[split]
        if split == "validation":
            predictions = self._crew.evaluate(split, JOINT_WEIGHTS)
            found = choose_and_evaluate(self._task, own, predictions)
            self._weight = found.joint_weight
            return found.metrics
        predictions = self._crew.evaluate(split, [self._weight])
        return evaluate_modes(self._task, own, predictions, self._weight).metrics


class Solo:
    """One stage by itself.

    Args:
        stage: whose model.
        teacher_folder: weights of a teacher that stays as it is; its predictions, from whole
            contexts, are distilled into the student on its windows.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        prepared: Prepared,
        stage: Stage,
        teacher_folder: Path | None = None,
    ) -> None:
        self._splits, self._stage_name = prepared.splits, stage
        self._task: Task = make_task(blueprint.task.name, prepared.labels)
        self._evaluation_tokens = blueprint.batches.evaluation_tokens
        num_labels = len(prepared.labels)
        self._stage = solo_stage(blueprint, stage, num_labels, self._splits["train"])
        self.num_parameters = len(self._stage.tied.table) * self._stage.tied.table.storage.shape[1]
        self.num_parameters += _own_parameters(self._stage.module)
        self._teacher = None
        if teacher_folder is not None:
            self._teacher = solo_stage(blueprint, Stage.TEACHER, num_labels, self._splits["train"])
            self._teacher.restore(teacher_folder)
            self._teacher.running.engine.train(False)
        self._link = LoopbackLink(torch.float32)
        plan = batch_plan(blueprint, self._splits["train"])
        num_steps = num_training_steps(blueprint, plan)
        shape = blueprint.learning_rate
        self._rate: Callable[[int], float] = lambda step: learning_rate_factor(
            step, num_steps, shape.warmup, shape.decay
        )
        sends = self._teacher is not None
        self._feed = _alone_feed(self._splits["train"], plan.contexts, sends)
        torch.manual_seed(torch_seed(blueprint.seed, "dropout", 0))

    def train(self, start: int, stop: int) -> None:
        """One update of the model and of its table a step."""
        own, stage = self._stage, self._stage.running
        stage.engine.train(True)
        for step in range(start, stop):
            if self._teacher is not None:
                teacher = self._teacher.running
                assert isinstance(teacher, TeacherStage)
                teacher.forward(self._feed, step, 0, update=False)
                teacher.send(self._feed, self._link, step, 0, Stage.STUDENT)
            if isinstance(stage, StudentStage):
                stage.receive(self._feed, self._link, step, 0, Stage.TEACHER)
            stage.forward(self._feed, step, 0, update=True)
            if isinstance(stage, TeacherStage):
                stage.send(self._feed, self._link, step, 0, Stage.STUDENT)
            stage.backward(step, 0, last=True)
            factor, touched = self._rate(step), stage.rows.take(step)
            own.tied.start(step, touched.token_ids, touched, stage.engine.grad_scale, factor)
            own.tied.finish(step)
            stage.engine.step(factor)

    def evaluate(self, split: str) -> dict[Mode, Metrics]:
        """The one mode that a model by itself has."""
        own, stage = self._splits[split], self._stage.running
        batches = evaluation_batches(own.context_lengths, self._evaluation_tokens)
        feed = _alone_feed(own, lambda step: batches[step], False)
        predicted = np.full(own.num_words, -1, dtype=np.int64)
        stage.engine.train(False)
        if isinstance(stage, StudentStage):
            stage.on_output = partial(_take, predicted)
        for step in range(len(batches)):
            if isinstance(stage, StudentStage):
                stage.receive(feed, self._link, step, 0, Stage.TEACHER)
                stage.forward(feed, step, 0, update=False)
            else:
                _predict_contexts(stage, feed, step, predicted)
        if isinstance(stage, StudentStage):
            stage.on_output = None
        assert (predicted >= 0).all(), "a word was not predicted"
        mode: Mode = "teacher" if self._stage_name is Stage.TEACHER else "student_alone"
        return {mode: self._task.metrics(own, predicted)}

    def keep(self, folder: Path) -> None:
        """Write the weights into an existing folder."""
        self._stage.keep(folder)


class SoloStage:
    """A stage with a table of its own."""

    def __init__(
        self,
        name: Stage,
        running: TeacherStage | StudentStage,
        module: nn.Module,
        tied: TiedEmbedding,
        width: int,
    ) -> None:
        self.name = name
        self.running = running
        self.module = module
        self.tied = tied
        self.width = width
        """Of the teacher's hidden states."""

    def keep(self, folder: Path) -> None:
        """Write weights and table."""
        state = self.running.engine.state_dict()
        assert state is not None
        save_weights(folder, self.name, state)
        save_table(folder, self.tied.table.values())

    def restore(self, folder: Path) -> None:
        """Read weights and table."""
        self.running.engine.load_state_dict(load_weights(folder, self.name))
        self.tied.table.load(load_table(folder))


def solo_stage(
    blueprint: Blueprint, stage: Stage, num_labels: int, train: TokenizedSplit
) -> SoloStage:
    """A stage of a run whose table starts from its own model and is its own."""
    blueprint = blueprint.altered(embedding={"init": str(stage)})
    built = build_model(blueprint, stage, num_labels)
    assert built.table is not None
    spec = blueprint.table.optimizer
    tied = TiedEmbedding(
        Table(built.table, np.unique(train.token_ids)),
        lambda rows: make_optimizer([{"params": [rows], "weight_decay": 0.0}], spec),
        spec.learning_rate,
        spec.clip_norm,
        blueprint.table.exchange,
        None,
        _ONE,
        num_local_stages=1,
    )
    optimizer = blueprint.stages[stage].optimizer
    engine = local_wiring(blueprint).make_engine(stage, built.module, optimizer)
    width = built.table.shape[1]
    if stage is Stage.TEACHER:
        return SoloStage(
            stage, TeacherStage(stage, engine, tied, 0, _OBJECTIVE), built.module, tied, width
        )
    assert isinstance(built.module, StudentModel)
    width = built.module.bridge.in_features
    # Without a teacher no predictions come, and the term is left out.
    spec_kd = replace(blueprint.distillation, passes="all")
    running = StudentStage(stage, engine, tied, 0, num_labels, _OBJECTIVE, spec_kd)
    return SoloStage(stage, running, built.module, tied, width)


def _alone_feed(
    split: TokenizedSplit,
    contexts_of: Callable[[int], IntArray],
    send_predictions: bool,
) -> Feed:
    """Batches in which the student goes over every window once, without the bridge."""
    return Feed(
        split,
        _ONE,
        1,
        contexts_of,
        lambda step, contexts: training_passes(split, contexts, 0, step, 1.0, 0.0),
        send_predictions,
    )


def _own_parameters(module: nn.Module) -> int:
    """Parameters that a model by itself uses: a student's without what feeds it."""
    if not isinstance(module, StudentModel):
        return num_elements(module)
    unused = num_elements(module.bridge) + module.no_teacher.numel()
    if module.shortcut is not None:
        unused += num_elements(module.shortcut)
    return num_elements(module) - unused


def _take(predicted: IntArray, output: WindowOutputs) -> None:
    """Put a group's labels into (num_words,) `predicted`."""
    _put(predicted, output.batch.words, output.student)


def _put(predicted: IntArray, words: IntArray, logits: Tensor) -> None:
    chosen = words >= 0
    predicted[words[chosen]] = logits[torch.from_numpy(chosen)].argmax(-1).numpy()


def _predict_contexts(stage: TeacherStage, feed: Feed, step: int, predicted: IntArray) -> None:
    part = feed.context_batch(step, 0, Stage.TEACHER, 0)
    touched = stage.rows.get(step, feed.plan(step).token_ids, False)
    with torch.no_grad():
        embeds = touched.lookup(torch.from_numpy(part.rows), stage.engine.compute_dtype)
        _, logits = stage.engine.forward(embeds, torch.from_numpy(part.mask))
    _put(predicted, part.words, logits)
