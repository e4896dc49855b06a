"""Feeds a rank: the plan of each step and the rank's parts of it, made when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from tsarch.data.partition import StepPlan, WindowPass, plan_step
from tsarch.data.replica_arrays import StudentPart, TeacherPart, student_part, teacher_part
from tsarch.losses.token import IGNORED
from tsarch.records import IntArray, TokenizedSplit
from tsarch.topology import Topology

Passes = dict[int, tuple[WindowPass, ...]]


class Feed:
    """Batches of one split, shared out over a topology; the same on every rank.

    Args:
        contexts_of: step → context numbers of its global batch.
        passes_of: (step, contexts) → the student's passes over each window.
        send_predictions: whether the teacher's logits travel with its hidden states.
        teacher_width: width of the teacher's hidden states.
        vocabulary: rows of the table, if every step touches them all.
    """

    def __init__(
        self,
        split: TokenizedSplit,
        topology: Topology,
        num_micro_batches: int,
        contexts_of: Callable[[int], IntArray],
        passes_of: Callable[[int, IntArray], Passes],
        send_predictions: bool,
        teacher_width: int = 0,
        vocabulary: int | None = None,
    ) -> None:
        self.split = split
        self.send_predictions = send_predictions
        self.topology = topology
        self.teacher_width = teacher_width
        self._vocabulary = vocabulary
        self._num_micro_batches = num_micro_batches
        self._contexts_of = contexts_of
        self._passes_of = passes_of
        self.plan = lru_cache(maxsize=4)(self._plan)
        self.teacher_part = lru_cache(maxsize=4 * num_micro_batches)(self._teacher_part)
        # Asked for when rows are expected, when they are received and when they are used.
        self.student_part = lru_cache(maxsize=4 * num_micro_batches)(self._student_part)

    def _teacher_part(self, step: int, micro_batch: int, replica: int) -> TeacherPart:
        """Arrays of a teacher replica."""
        plan = self.plan(step)
        return teacher_part(self.split, plan, plan.micro_batches[micro_batch], replica)

    def _student_part(self, step: int, micro_batch: int, replica: int) -> StudentPart:
        """Arrays of a student replica."""
        plan = self.plan(step)
        return student_part(self.split, plan, plan.micro_batches[micro_batch], replica)

    def labels(self, words: IntArray) -> IntArray:
        """(…) word numbers → (…) label ids, `IGNORED` where there is no word."""
        return np.where(words >= 0, self.split.labels[words], IGNORED)

    def touched(self, steps: tuple[int, ...]) -> IntArray:
        """Sorted distinct tokens of the batches of `steps`."""
        return np.unique(np.concatenate([self.plan(step).token_ids for step in steps]))

    def _plan(self, step: int) -> StepPlan:
        contexts = self._contexts_of(step)
        passes = self._passes_of(step, contexts)
        return plan_step(
            self.split,
            contexts,
            self.topology,
            self._num_micro_batches,
            passes,
            self.send_predictions,
            self._vocabulary,
        )
