"""The job that all sides of the speed benchmark do: data, batches, models and counts of it.

Everything comes from the config through tsarch's own functions, so that no side gets other
sentences, batches or weights than another; what a side does with them is in its own file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tsarch.blueprint import resolve
from tsarch.config import Config
from tsarch.config_loading import load_config
from tsarch.data.loader import BatchPlan
from tsarch.data.partition import StepPlan, balance, plan_step
from tsarch.data.replica_arrays import context_batch, window_batches
from tsarch.data.routes import routes_of
from tsarch.data.window_passes import training_passes
from tsarch.feeds import batch_plan
from tsarch.losses.token import cross_entropy
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.prepare import prepare_data
from tsarch.records import IGNORED, IntArray, TokenizedSplit
from tsarch.stage.build import build_model
from tsarch.topology import Stage, Topology

CONFIG = Path("configs/bench.yaml")
JOINT_MICRO_BATCHES = 8


@dataclass(frozen=True)
class Counts:
    """What some steps read and computed."""

    num_tokens: int
    """Real tokens of the contexts; a token that both models read counts once."""
    teacher_positions: int
    """Positions that the teacher computed, padding included."""
    student_positions: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.num_tokens + other.num_tokens,
            self.teacher_positions + other.teacher_positions,
            self.student_positions + other.student_positions,
        )


@dataclass(frozen=True)
class Windows:
    """Windows of similar length, padded to the longest."""

    ids: Tensor
    """(windows, tokens)."""
    mask: Tensor
    """(windows, tokens) 0 at padding."""
    labels: Tensor
    """(windows, tokens) `IGNORED` where no word starts."""
    places: Tensor
    """(windows, tokens) place of each token among the contexts' flattened positions; −1: none."""


@dataclass(frozen=True)
class PeerBatch:
    """A micro-batch of one rank: padded contexts and their windows."""

    ids: Tensor
    """(contexts, tokens)."""
    mask: Tensor
    """(contexts, tokens) 0 at padding."""
    labels: Tensor
    """(contexts, tokens) `IGNORED` where no word starts."""
    windows: tuple[Windows, ...]
    num_tokens: int
    """Real tokens; 0 in a micro-batch without contexts, whose arrays hold one token too."""

    @property
    def counts(self) -> Counts:
        """Tokens and positions of the micro-batch."""
        student = sum(group.mask.numel() for group in self.windows)
        return Counts(self.num_tokens, self.mask.numel(), student)


class Table(nn.Embedding):
    """An ordinary embedding that starts as a copy of `weight` (vocabulary, width)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape[0], weight.shape[1], _weight=weight.detach().clone())


class BenchJob:
    """Data and batches of a config."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.blueprint = resolve(config)
        prepared = prepare_data(self.blueprint)
        self.labels = prepared.labels
        self.split: TokenizedSplit = prepared.splits["train"]

    @classmethod
    def load(cls, path: Path, precision: str = "fp32") -> BenchJob:
        """The job of a config file, in a precision."""
        return cls(load_config(path).model_copy(update={"precision": precision}))

    @property
    def is_bf16(self) -> bool:
        """Whether matrices are multiplied in bf16."""
        return self.blueprint.precision == "bf16"

    @cached_property
    def plan(self) -> BatchPlan:
        """Batches of all epochs, those that tsarch trains on."""
        return batch_plan(self.blueprint, self.split)

    def batches(self, step: int, rank: int, num_ranks: int, num_micro_batches: int) -> StepPlan:
        """Plan of `rank`'s share of a step's contexts, all of it on that rank."""
        contexts = self.plan.contexts(step)
        lengths = self.split.context_lengths[contexts]
        own = np.array(
            balance(contexts.tolist(), lengths.tolist(), num_ranks)[rank], dtype=np.int64
        )
        student = self.config.student
        assert student is not None, "the job has both models"
        passes = training_passes(
            self.split, own, self.config.run.seed, step, student.teacher_dropout, 0.0
        )
        return plan_step(self.split, own, Topology.pair(1, 1), num_micro_batches, passes, False)

    def tensors(
        self, step: int, rank: int = 0, num_ranks: int = 1, num_micro_batches: int = 1
    ) -> list[PeerBatch]:
        """`rank`'s micro-batches of a step, padded and grouped by length as tsarch's are."""
        plan = self.batches(step, rank, num_ranks, num_micro_batches)
        return [self._tensors(plan, place) for place in range(num_micro_batches)]

    def _tensors(self, plan: StepPlan, place: int) -> PeerBatch:
        micro_batch = plan.micro_batches[place]
        routes = routes_of(self.split, micro_batch)
        teacher = context_batch(self.split, plan, micro_batch, routes, Stage.TEACHER, 0)
        windows = window_batches(self.split, plan, micro_batch, routes, Stage.STUDENT, 0)
        # One entry more, so that −1 (no teacher here) stays −1.
        sent = np.concatenate([*teacher.outgoing.values(), np.array([-1])])
        groups = tuple(
            Windows(
                torch.from_numpy(_tokens(plan, own.rows)),
                torch.from_numpy(own.mask),
                self._labels(own.words),
                torch.from_numpy(sent[own.boundary]),
            )
            for own in windows
        )
        ids = torch.from_numpy(_tokens(plan, teacher.rows))
        lengths = self.split.context_lengths
        return PeerBatch(
            ids,
            torch.from_numpy(teacher.mask),
            self._labels(teacher.words),
            groups,
            num_tokens=sum(
                int(lengths[context]) for context in micro_batch.contexts[Stage.TEACHER][0]
            ),
        )

    def _labels(self, words: IntArray) -> Tensor:
        return torch.from_numpy(np.where(words >= 0, self.split.labels[words], IGNORED))

    def models(self) -> tuple[Table, TeacherModel, StudentModel]:
        """The table and the two models, with tsarch's starting weights. In bf16 with the faster of
        transformers' own ways of attention on CPUs: `sdpa` takes twice as long there."""
        teacher = build_model(self.blueprint, Stage.TEACHER, len(self.labels))
        student = build_model(self.blueprint, Stage.STUDENT, len(self.labels))
        table = teacher.table if teacher.table is not None else student.table
        assert table is not None
        assert isinstance(teacher.module, TeacherModel)
        assert isinstance(student.module, StudentModel)
        if self.is_bf16:
            for model in (teacher.module, student.module):
                model.backbone.set_attn_implementation("eager")
        return Table(table), teacher.module, student.module


def _tokens(plan: StepPlan, rows: IntArray) -> IntArray:
    """Tokens of rows; of a rank without contexts, whose one row is padding, token 0."""
    return plan.token_ids[rows] if len(plan.token_ids) else np.zeros_like(rows)


def mean_loss(logits: Sequence[Tensor], labels: Sequence[Tensor], num_labels: int) -> Tensor:
    """() cross-entropy of some padded groups, summed and divided by `num_labels`."""
    sums = [cross_entropy(own, gold).sum() for own, gold in zip(logits, labels, strict=True)]
    return torch.stack(sums).sum() / num_labels


def learning_rate(config: Config) -> float:
    """The one rate of sides that have one optimizer for everything."""
    return config.optimizer.teacher_learning_rate


def make_adamw(module: nn.Module, config: Config) -> torch.optim.Optimizer:
    """One AdamW over all of `module`, with the config's numbers and torch's fused kernel."""
    o = config.optimizer
    return torch.optim.AdamW(
        module.parameters(),
        lr=learning_rate(config),
        betas=(o.beta1, o.beta2),
        eps=o.epsilon,
        weight_decay=o.weight_decay,
        fused=True,
    )


class Stopwatch:
    """Wall and CPU seconds of this process since a step; the steps before are a warm-up."""

    def __init__(self, num_warm_up_steps: int) -> None:
        self._num_warm_up_steps = num_warm_up_steps
        self._started = (0.0, 0.0)
        self.wall_s = 0.0
        self.cpu_s = 0.0

    def steps(self, num_steps: int) -> Iterator[tuple[int, bool]]:
        """(step, whether it counts) of the warm-up and of `num_steps` more; stops at the end."""
        for step in range(self._num_warm_up_steps + num_steps):
            if step == self._num_warm_up_steps:
                self.start()
            yield step, step >= self._num_warm_up_steps
        self.stop()

    def start(self) -> None:
        """Start."""
        self._started = (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        """Take the times since `start`."""
        wall_s, cpu_s = self._started
        self.wall_s = time.perf_counter() - wall_s
        self.cpu_s = time.process_time() - cpu_s
