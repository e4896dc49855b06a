"""Feeds a rank: the plan of each step and the rank's arrays of it, made when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from tsarch.data.partition import StepPlan, WindowPass, plan_step
from tsarch.data.replica_arrays import (
    ContextBatch,
    WindowBatch,
    context_batch,
    sliced_batch,
    window_batches,
)
from tsarch.data.routes import Route, routes_of
from tsarch.records import IntArray, TokenizedSplit
from tsarch.topology import Stage, Topology

Passes = dict[int, tuple[WindowPass, ...]]


class Feed:
    """Batches of one split, shared out over a topology; the same on every rank.

    Args:
        contexts_of: step → context numbers of its global batch.
        passes_of: (step, contexts) → the passes over each window.
        send_predictions: whether a teacher's predictions travel with its hidden states.
        vocabulary: rows of the table, if every step touches them all.
        send_all: whether states (and predictions) travel for windows too that no fed pass reads.
        send_shown: whether more of a teacher's inside travels (`InnerStates`).
        split_of: step → the split with other tokens in the same places; None: it stays as it is.
    """

    def __init__(
        self,
        split: TokenizedSplit,
        topology: Topology,
        num_micro_batches: int,
        contexts_of: Callable[[int], IntArray],
        passes_of: Callable[[int, IntArray], Passes],
        send_predictions: bool,
        vocabulary: int | None = None,
        send_all: bool = False,
        send_shown: bool = False,
        split_of: Callable[[int], TokenizedSplit] | None = None,
    ) -> None:
        self.split = split
        self.send_predictions = send_predictions
        self.send_shown = send_shown
        self._send_all = send_all
        self.topology = topology
        self._vocabulary = vocabulary
        self._num_micro_batches = num_micro_batches
        self._contexts_of = contexts_of
        self._passes_of = passes_of
        self._split_of = split_of or (lambda step: split)
        size = 4 * num_micro_batches
        self.plan = lru_cache(maxsize=4)(self._plan)
        # Asked for when states are expected, when they are received and when they are used.
        self.routes = lru_cache(maxsize=size)(self._routes)
        self.context_batch = lru_cache(maxsize=size)(self._context_batch)
        self.window_batches = lru_cache(maxsize=size)(self._window_batches)

    def routes_from(self, step: int, micro_batch: int, rank: int, target: Stage) -> list[Route]:
        """Routes of a micro-batch from a rank to those of a stage."""
        return [
            route
            for route in self.routes(step, micro_batch)
            if route.source == rank and self.topology.place(route.target)[0] is target
        ]

    def routes_to(self, step: int, micro_batch: int, rank: int, source: Stage) -> list[Route]:
        """Routes of a micro-batch to a rank from those of a stage."""
        return [
            route
            for route in self.routes(step, micro_batch)
            if route.target == rank and self.topology.place(route.source)[0] is source
        ]

    def all_labelled(self, step: int, micro_batch: int) -> bool:
        """Whether all contexts of a micro-batch, on all replicas, have labels that are learned."""
        own = self.plan(step).micro_batches[micro_batch].contexts
        numbers = [n for shares in own.values() for share in shares for n in share]
        return bool(self.split.labelled(np.array(numbers, dtype=np.int64)).all())

    def labels(self, words: IntArray) -> IntArray:
        """(…) word numbers → (…) label ids, `IGNORED` where there is no word."""
        return self.split.labels_of(words)

    def touched(self, steps: tuple[int, ...]) -> IntArray:
        """Sorted distinct tokens of the batches of `steps`."""
        return np.unique(np.concatenate([self.plan(step).token_ids for step in steps]))

    def _routes(self, step: int, micro_batch: int) -> tuple[Route, ...]:
        """All routes of a micro-batch."""
        return routes_of(self.split, self.plan(step).micro_batches[micro_batch])

    def _context_batch(
        self, step: int, micro_batch: int, stage: Stage, replica: int
    ) -> ContextBatch:
        """Contexts of a replica of a stage that reads them."""
        plan, rank = self.plan(step), self.topology.rank(stage, replica)
        own = [route for route in self.routes(step, micro_batch) if route.source == rank]
        work = plan.micro_batches[micro_batch]
        if rank in work.slices:
            return sliced_batch(self._split_of(step), plan, own, work.slices[rank])
        return context_batch(self._split_of(step), plan, work, own, stage, replica)

    def _window_batches(
        self, step: int, micro_batch: int, stage: Stage, replica: int
    ) -> tuple[WindowBatch, ...]:
        """Windows of a replica of a stage that reads them."""
        plan, rank = self.plan(step), self.topology.rank(stage, replica)
        own = [route for route in self.routes(step, micro_batch) if route.target == rank]
        return window_batches(
            self._split_of(step), plan, plan.micro_batches[micro_batch], own, stage, replica
        )

    def _plan(self, step: int) -> StepPlan:
        self.split.release()
        contexts = self._contexts_of(step)
        passes = self._passes_of(step, contexts)
        return plan_step(
            self._split_of(step),
            contexts,
            self.topology,
            self._num_micro_batches,
            passes,
            self._send_all,
            self._vocabulary,
        )
