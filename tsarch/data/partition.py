"""Who computes what of a step: contexts to the replicas of stages that read them, windows to those
of stages that read windows, and what travels between them. Pure, no torch: every rank derives the
same plan by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from tsarch.data.context_slices import ContextSlice, context_slices, holders
from tsarch.records import IGNORED, IntArray, TokenizedSplit
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
    stands_for: float = 1.0
    """Windows that it stands for, where those that have it are drawn (`student.fed_share`); a part
    of `weight`."""
    labelled: bool = True
    """Whether the window has labels that are learned, and not the teacher's predictions alone."""


@dataclass(frozen=True)
class MicroBatchPlan:
    """Work of all replicas for one micro-batch."""

    contexts: Mapping[Stage, tuple[tuple[int, ...], ...]]
    """Contexts of each replica of each stage that reads contexts; of replicas that share theirs the
    same."""
    passes: Mapping[Stage, tuple[tuple[WindowPass, ...], ...]]
    """Window passes of each replica of each stage that reads windows."""
    routes: Mapping[tuple[int, int], tuple[int, ...]]
    """(rank that sends, rank that receives) → windows whose states travel, in order of sending."""
    slices: Mapping[int, ContextSlice] = field(default_factory=dict)
    """Rank → its slice of its contexts, where replicas share theirs."""


@dataclass(frozen=True)
class StepPlan:
    """Work of all replicas for one step, and the numbers that normalise its losses."""

    micro_batches: tuple[MicroBatchPlan, ...]
    num_labels: int
    """Labelled positions of the global batch's contexts; of these four numbers, as of means of
    losses, contexts without labels are no part."""
    num_window_labels: int
    """Of their windows; of windows that have slices of contexts alone as many."""
    num_contexts: int
    """Labelled contexts of the global batch."""
    num_windows: int
    """Their windows."""
    num_tokens: int
    """Real (non-padding) tokens of all contexts of the global batch."""
    token_ids: IntArray
    """Sorted distinct tokens of the rows of the table that the step touches: those of contexts and
    windows, or all where the table is the output projection."""

    def num_terms(self, stage: Stage, per_sequence: bool) -> int:
        """What a stage's losses are means over: labelled words, or sequences that it reads."""
        if stage.reads == "contexts":
            return self.num_contexts if per_sequence else self.num_labels
        return max(self.num_windows if per_sequence else self.num_window_labels, 1)


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
    """Share a global batch out over micro-batches and the replicas of all stages.

    `passes` gives each window's passes, the same in every stage that reads windows; states travel
    for windows with a fed pass, or for all (`send_all`, when the teacher's predictions or states
    are learned from). `vocabulary`: rows of the table, if the step touches them all.
    """
    lengths = dict(zip(contexts.tolist(), split.lengths_of(contexts).tolist(), strict=True))
    readers = topology.graph.reading("contexts")
    num_shares = topology.num_groups(readers[0]) if readers else 1
    shares = balance(lengths, lengths.values(), num_micro_batches * num_shares)
    micro_batches = tuple(
        _plan_micro_batch(split, own, topology, passes, send_all)
        for own in _smallest_outside(
            [shares[m::num_micro_batches] for m in range(num_micro_batches)], lengths
        )
    )
    none = np.empty(0, dtype=np.int64)
    tokens = np.concatenate([none, *(context_tokens(split, c) for c in contexts)])
    asked = np.concatenate([none, *(_query_tokens(split, c) for c in contexts)])
    known = contexts[split.labelled(contexts)]
    learned = tokens
    if len(known) < len(contexts):
        learned = np.concatenate([none, *(context_tokens(split, c) for c in known)])
    num_labels, num_window_labels = _num_labels(split, known, learned)
    return StepPlan(
        micro_batches,
        num_labels=num_labels,
        num_window_labels=num_window_labels,
        num_contexts=len(known),
        num_windows=sum(len(context_windows(split, c)) for c in known.tolist()),
        num_tokens=len(tokens),
        token_ids=np.unique(split.token_ids[np.concatenate([tokens, asked])])
        if vocabulary is None
        else np.arange(vocabulary),
    )


def _smallest_outside(
    micro_batches: list[list[list[int]]], lengths: Mapping[int, int]
) -> list[list[list[int]]]:
    """The smallest micro-batch last, the next one first: while a pipeline fills and drains, one
    stage waits for these two."""
    if len(micro_batches) < 3:
        return micro_batches
    last, first, *others = sorted(
        micro_batches, key=lambda shares: sum(lengths[c] for own in shares for c in own)
    )
    return [first, *others, last]


def context_tokens(split: TokenizedSplit, context: int) -> IntArray:
    """Places in `split.token_ids` of a context's tokens."""
    return np.arange(split.context_offsets[context], split.context_stops[context])


def _query_tokens(split: TokenizedSplit, context: int) -> IntArray:
    """Places of the tokens behind a context, which only windows have."""
    return np.arange(split.context_stops[context], split.context_offsets[context + 1])


def _num_labels(split: TokenizedSplit, contexts: IntArray, tokens: IntArray) -> tuple[int, int]:
    """Labelled positions of contexts, whose `tokens` are known, and of their windows."""
    if split.queries is None:
        number = int((split.words[tokens] >= 0).sum())
        return number, number
    windows = [w for c in contexts.tolist() for w in context_windows(split, c)]
    in_windows = sum(int((split.window_words(w) >= 0).sum()) for w in windows)
    return int((split.queries.context_labels[tokens] != IGNORED).sum()), in_windows


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
    """`shares`: contexts of each group of replicas of the first stage that reads them (or of
    nobody)."""
    own = sorted(context for share in shares for context in share)
    windows = sorted(w for context in own for w in context_windows(split, context))
    sizes = [split.window_length(w) * len(passes[w]) for w in windows]
    travels = [w for w in windows if send_all or any(p.fed for p in passes[w])]
    read: dict[Stage, list[list[int]]] = {}
    slices: dict[int, ContextSlice] = {}
    for place, stage in enumerate(topology.graph.reading("contexts")):
        groups = shares
        if place > 0:
            lengths = split.lengths_of(np.array(own, dtype=np.int64)).tolist()
            groups = balance(own, lengths, topology.num_groups(stage))
        read[stage] = [group for group in groups for _ in range(topology.num_slices(stage))]
        slices |= _slices(split, topology, stage, groups)
    received = {
        stage: balance(windows, sizes, topology.replicas(stage))
        for stage in topology.graph.reading("windows")
    }
    routes: dict[tuple[int, int], list[int]] = {}
    for source, target in topology.graph.edges:
        senders = _senders(split, topology, source, read[source], slices)
        receivers = {w: s for s, windows in enumerate(received[target]) for w in windows}
        for window in travels:
            receiver = topology.rank(target, receivers[window])
            for sender in senders[window]:
                routes.setdefault((sender, receiver), []).append(window)
    return MicroBatchPlan(
        {stage: tuple(map(tuple, shares)) for stage, shares in read.items()},
        {
            stage: tuple(tuple(p for w in own for p in passes[w]) for own in shares)
            for stage, shares in received.items()
        },
        {ranks: tuple(own) for ranks, own in routes.items()},
        slices,
    )


def _slices(
    split: TokenizedSplit, topology: Topology, stage: Stage, groups: list[list[int]]
) -> dict[int, ContextSlice]:
    """Rank → its slice of the contexts of its group; nothing where replicas have their own."""
    number = topology.num_slices(stage)
    if number == 1:
        return {}
    return {
        topology.rank(stage, group * number + place): own
        for group, contexts in enumerate(groups)
        for place, own in enumerate(
            context_slices([context_tokens(split, c) for c in contexts], number)
        )
    }


def _senders(
    split: TokenizedSplit,
    topology: Topology,
    stage: Stage,
    read: list[list[int]],
    slices: Mapping[int, ContextSlice],
) -> dict[int, list[int]]:
    """Window → the ranks of a stage that have states of it."""
    number = topology.num_slices(stage)
    found: dict[int, list[int]] = {}
    for replica in range(0, topology.replicas(stage), number):
        ranks = [topology.rank(stage, replica + place) for place in range(number)]
        for window in (w for c in read[replica] for w in context_windows(split, c)):
            if number == 1:
                found[window] = ranks
                continue
            sources = split.window_sources(window)
            here = holders([slices[rank] for rank in ranks], sources[sources >= 0])
            found[window] = [ranks[place] for place in here]
    return found
