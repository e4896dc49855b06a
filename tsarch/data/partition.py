"""Who computes what of a step: contexts to teacher replicas, windows to student replicas, and
the rows that travel between them. Pure, no torch: every rank derives the same plan by itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tsarch.records import IntArray, TokenizedSplit
from tsarch.topology import Stage, Topology

Item = TypeVar("Item")


@dataclass(frozen=True)
class WindowPass:
    """One pass of the student over a window, with or without the teacher's hidden states."""

    window: int
    fed: bool
    weight: float = 1.0
    """Weight of the pass in the student's loss."""
    second: bool = False
    """The extra pass without the teacher (`student.alone_weight`)."""


@dataclass(frozen=True)
class MicroBatchPlan:
    """Work of all replicas for one micro-batch."""

    contexts: tuple[tuple[int, ...], ...]
    """Contexts of each teacher replica."""
    passes: tuple[tuple[WindowPass, ...], ...]
    """Window passes of each student replica."""
    routes: dict[tuple[int, int], tuple[int, ...]]
    """(teacher replica, student replica) → windows whose rows travel, in order of sending."""


@dataclass(frozen=True)
class StepPlan:
    """Work of all replicas for one step, and the numbers that normalise its losses."""

    micro_batches: tuple[MicroBatchPlan, ...]
    num_labels: int
    """Labelled words of the global batch."""
    num_contexts: int
    """Contexts of the global batch."""
    num_windows: int
    """Their windows."""
    num_tokens: int
    """Real (non-padding) tokens of the global batch's contexts."""
    token_ids: IntArray
    """Sorted distinct tokens of the rows of the table that the step touches: the contexts', or all
    where the table is the output projection."""

    def num_terms(self, stage: Stage, per_sequence: bool) -> int:
        """What a stage's losses are means over: labelled words, or sequences that it reads."""
        if not per_sequence:
            return self.num_labels
        return self.num_contexts if stage is Stage.TEACHER else max(self.num_windows, 1)


def balance(items: Iterable[Item], sizes: Iterable[int], num_bins: int) -> list[list[Item]]:
    """Share items out so that the bins' sizes differ by at most the largest item.

    Longest-processing-time rule (Graham 1969): largest item first, always to the emptiest bin.
    The items of a bin keep their order.
    """
    numbered = [(size, place, item) for place, (item, size) in enumerate(zip(items, sizes))]
    totals = [0] * num_bins
    bins: list[list[tuple[int, Item]]] = [[] for _ in range(num_bins)]
    for size, place, item in sorted(numbered, key=lambda entry: (-entry[0], entry[1])):
        emptiest = totals.index(min(totals))
        totals[emptiest] += size
        bins[emptiest].append((place, item))
    return [[item for _, item in sorted(b, key=lambda entry: entry[0])] for b in bins]


def plan_step(
    split: TokenizedSplit,
    contexts: IntArray,
    topology: Topology,
    num_micro_batches: int,
    passes: dict[int, tuple[WindowPass, ...]],
    send_all: bool,
    vocabulary: int | None = None,
) -> StepPlan:
    """Share a global batch out over micro-batches and the replicas of both stages.

    `passes` gives each window's passes; rows travel for windows with a fed pass, or for all
    (`send_all`, when the teacher's predictions are needed too). `vocabulary`: rows of the table, if
    the step touches them all.
    """
    lengths = split.context_lengths
    shares = balance(
        contexts.tolist(),
        lengths[contexts].tolist(),
        num_micro_batches * topology.replicas(Stage.TEACHER),
    )
    micro_batches = tuple(
        _plan_micro_batch(split, own, topology, passes, send_all)
        for own in _smallest_outside(
            [shares[m::num_micro_batches] for m in range(num_micro_batches)], lengths
        )
    )
    none = np.empty(0, dtype=np.int64)
    tokens = np.concatenate([none, *(context_tokens(split, c) for c in contexts)])
    return StepPlan(
        micro_batches,
        num_labels=int((split.words[tokens] >= 0).sum()),
        num_contexts=len(contexts),
        num_windows=sum(len(context_windows(split, c)) for c in contexts.tolist()),
        num_tokens=len(tokens),
        token_ids=np.unique(split.token_ids[tokens])
        if vocabulary is None
        else np.arange(vocabulary),
    )


def _smallest_outside(
    micro_batches: list[list[list[int]]], lengths: IntArray
) -> list[list[list[int]]]:
    """The smallest micro-batch last, the next one first: while a pipeline fills and drains, one
    stage waits for these two."""
    if len(micro_batches) < 3:
        return micro_batches
    last, first, *others = sorted(
        micro_batches, key=lambda shares: sum(int(lengths[c]) for own in shares for c in own)
    )
    return [first, *others, last]


def context_tokens(split: TokenizedSplit, context: int) -> IntArray:
    """Places in `split.token_ids` of a context's tokens."""
    return np.arange(split.context_offsets[context], split.context_offsets[context + 1])


def context_windows(split: TokenizedSplit, context: int) -> range:
    """Window numbers of a context."""
    return range(int(split.window_offsets[context]), int(split.window_offsets[context + 1]))


def _plan_micro_batch(
    split: TokenizedSplit,
    shares: list[list[int]],
    topology: Topology,
    passes: dict[int, tuple[WindowPass, ...]],
    send_all: bool,
) -> MicroBatchPlan:
    owner = {w: t for t, own in enumerate(shares) for c in own for w in context_windows(split, c)}
    windows = sorted(owner)
    sizes = [split.window_length(w) * len(passes[w]) for w in windows]
    received = balance(windows, sizes, topology.replicas(Stage.STUDENT))
    routes = {
        (t, s): tuple(
            w for w in received[s] if owner[w] == t and (send_all or any(p.fed for p in passes[w]))
        )
        for t in range(topology.replicas(Stage.TEACHER))
        for s in range(topology.replicas(Stage.STUDENT))
    }
    return MicroBatchPlan(
        tuple(tuple(share) for share in shares),
        tuple(tuple(p for w in own for p in passes[w]) for own in received),
        {pair: own for pair, own in routes.items() if own},
    )
