"""Padded arrays of one replica's work in one micro-batch, made from the step's plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tsarch.data.context_slices import ContextSlice
from tsarch.data.partition import MicroBatchPlan, StepPlan, WindowPass, context_tokens
from tsarch.data.routes import Route
from tsarch.records import IGNORED, IntArray, TokenizedSplit
from tsarch.topology import Stage

# What a call of the model costs apart from its tokens, in tokens: 18 ms of a six-layer model on one
# CPU core, at 0.8 ms a token. Large batches of fast devices get few calls by the share.
_CALL_COST_TOKENS = 32
_CALL_COST_SHARE = 1 / 64


@dataclass(frozen=True)
class ContextBatch:
    """Contexts that a replica reads; an idle one has a context of one masked-in token. Of contexts
    that it shares, its slice of their tokens, as a batch of one."""

    rows: IntArray
    """(batch, context_tokens) row of each token in the step's `token_ids`."""
    mask: IntArray
    """(batch, context_tokens) 1 at tokens, 0 at padding."""
    words: IntArray
    """(batch, context_tokens) word that starts at a token, −1 elsewhere."""
    labels: IntArray
    """(batch, context_tokens) label of each token, `IGNORED` where there is none."""
    outgoing: dict[int, IntArray]
    """Rank that receives → (states,) flat positions (batch × context_tokens) to send it."""
    labelled: IntArray
    """(batch,) 1 if the context has labels that are learned."""
    types: IntArray | None = None
    """(batch, context_tokens) `TokenizedSplit.token_types`, 0 at padding; None: all 0."""
    slice: ContextSlice | None = None
    """None: these are whole contexts."""


@dataclass(frozen=True)
class WindowBatch:
    """Windows of similar length, padded to the longest."""

    rows: IntArray
    """(windows, tokens) row of each token in the step's `token_ids`."""
    mask: IntArray
    """(windows, tokens) 1 at tokens, 0 at padding."""
    words: IntArray
    """(windows, tokens) word that starts at a token, −1 elsewhere."""
    arrived: IntArray
    """(windows, tokens) row of each token among the received ones; −1: none came."""
    boundary: IntArray
    """(windows, tokens) the same for passes that use the row; −1 for passes without it."""
    fed: IntArray
    """(windows,) 1 if the pass uses the teacher's hidden states."""
    second: IntArray
    """(windows,) 1 if the pass is the extra one without the teacher."""
    weight: np.ndarray[tuple[int], np.dtype[np.float32]]
    """(windows,) weight of the pass in the loss."""
    stands_for: np.ndarray[tuple[int], np.dtype[np.float32]]
    """(windows,) windows that the pass stands for, see `WindowPass`."""
    labelled: IntArray
    """(windows,) 1 if the window has labels that are learned."""
    types: IntArray | None = None
    """(windows, tokens) `TokenizedSplit.token_types`, 0 at padding; None: all 0."""


def context_batch(
    split: TokenizedSplit,
    step: StepPlan,
    micro_batch: MicroBatchPlan,
    routes: Sequence[Route],
    stage: Stage,
    replica: int,
) -> ContextBatch:
    """Arrays of a replica of a stage that reads contexts; `routes`: those that start there."""
    contexts = micro_batch.contexts[stage][replica]
    slices = [context_tokens(split, c) for c in contexts]
    rows, mask, words = _pad(split, step, slices)
    starts = split.context_offsets[np.array(contexts, dtype=np.int64)]
    order = np.argsort(starts)
    outgoing = {}
    for route in routes:
        owners = order[np.searchsorted(starts, route.places, side="right", sorter=order) - 1]
        outgoing[route.target] = route.places - starts[owners] + owners * rows.shape[1]
    labels = _context_labels(split, slices, words)
    known = split.labelled(np.array(contexts, dtype=np.int64)).astype(np.int64)
    return ContextBatch(
        rows,
        mask,
        words,
        labels,
        outgoing,
        np.resize(known if contexts else [1], len(rows)),
        _types(split, slices, rows.shape),
    )


def sliced_batch(
    split: TokenizedSplit, step: StepPlan, routes: Sequence[Route], own: ContextSlice
) -> ContextBatch:
    """Arrays of a replica's slice of the contexts that it shares; `routes`: those that start
    there."""
    slices = [own.places]
    rows, mask, words = _pad(split, step, slices, own.num_tokens)
    order = np.argsort(own.places)
    outgoing = {
        route.target: order[np.searchsorted(own.places, route.places, sorter=order)]
        for route in routes
    }
    labels, types = _context_labels(split, slices, words), _types(split, slices, rows.shape)
    all_learned = np.ones(1, dtype=np.int64)  # there are no contexts without labels here
    return ContextBatch(rows, mask, words, labels, outgoing, all_learned, types, own)


def window_batches(
    split: TokenizedSplit,
    step: StepPlan,
    micro_batch: MicroBatchPlan,
    routes: Sequence[Route],
    stage: Stage,
    replica: int,
) -> tuple[WindowBatch, ...]:
    """Windows of a replica of a stage that reads them, in batches of similar length; `routes`:
    those that end there. An idle one has a window of one masked-in token."""
    arrivals = _Arrivals.of(micro_batch, routes)
    shares = [_by_length(split, passes) for passes in micro_batch.passes[stage]]
    # ZeRO 3 gathers parameters in every call of the model, so replicas must make equally many.
    num_idle = max(map(len, shares)) - len(shares[replica])
    own = shares[replica] + [[]] * num_idle
    return tuple(_batch(split, step, passes, arrivals) for passes in own)


@dataclass(frozen=True)
class _Arrivals:
    """States that a replica receives in a micro-batch."""

    windows: frozenset[int]
    """Those that they come for."""
    places: IntArray
    """(states,) what they are of, rising."""
    rows: IntArray
    """(states,) where each is among those received, in the order of `places`."""

    @classmethod
    def of(cls, micro_batch: MicroBatchPlan, routes: Sequence[Route]) -> _Arrivals:
        """By these routes, in their order."""
        windows = [w for r in routes for w in micro_batch.routes[r.source, r.target]]
        places = np.concatenate([np.empty(0, dtype=np.int64), *(r.places for r in routes)])
        order = np.argsort(places)
        return cls(frozenset(windows), places[order], order)

    def of_window(self, window: int, sources: IntArray) -> IntArray:
        """(tokens,) rows of the states of `sources`; −1 where there is none."""
        if window not in self.windows or not len(self.places):
            return np.full(len(sources), -1)
        among = np.searchsorted(self.places, sources).clip(max=len(self.places) - 1)
        return np.where(sources >= 0, self.rows[among], -1)


def _by_length(split: TokenizedSplit, passes: Sequence[WindowPass]) -> list[list[WindowPass]]:
    """Parts of similar length, longest first; one empty part if there is nothing to do.

    Windows in the order of their lengths are cut where padded tokens and calls cost least.
    """
    if not passes:
        return [[]]
    lengths = np.array([split.window_length(p.window) for p in passes])
    return [[passes[place] for place in part] for part in parts_by_length(lengths)]


def parts_by_length(lengths: IntArray) -> list[list[int]]:
    """Places of sequences of (n,) lengths in parts that are padded together, longest first."""
    order = np.argsort(-lengths, kind="stable")
    call_cost = max(_CALL_COST_TOKENS, _CALL_COST_SHARE * float(lengths.sum()))
    cuts = cheapest_cuts(lengths[order], call_cost)
    return [order[start:stop].tolist() for start, stop in pairwise(cuts)]


def cheapest_cuts(lengths: IntArray, call_cost: float) -> list[int]:
    """Cuts of a falling series, 0 and its end included, with the least cost in padded tokens.

    A part costs `call_cost` and its longest length times its count. Dynamic programming over the
    place of the last cut.
    """
    cost = np.zeros(len(lengths) + 1)
    last_cut = np.zeros(len(lengths) + 1, dtype=np.int64)
    for stop in range(1, len(lengths) + 1):
        starts = np.arange(stop)
        total = cost[:stop] + call_cost + lengths[:stop] * (stop - starts)
        last_cut[stop] = np.argmin(total)
        cost[stop] = total[last_cut[stop]]
    cuts = [len(lengths)]
    while cuts[-1] > 0:
        cuts.append(int(last_cut[cuts[-1]]))
    return cuts[::-1]


def _batch(
    split: TokenizedSplit, step: StepPlan, passes: Sequence[WindowPass], arrivals: _Arrivals
) -> WindowBatch:
    slices = [split.window_places(p.window) for p in passes]
    rows, mask, words = _pad(split, step, slices)
    arrived = np.full_like(rows, -1)
    for place, item in enumerate(passes):
        sources = split.window_sources(item.window)
        arrived[place, : len(sources)] = arrivals.of_window(item.window, sources)
    num = max(len(passes), 1)
    fed = np.resize([int(p.fed) for p in passes] or [0], num)
    return WindowBatch(
        rows,
        mask,
        words,
        arrived,
        np.where(fed[:, None] == 1, arrived, -1),
        fed,
        np.resize([int(p.second) for p in passes] or [0], num),
        np.resize(np.array([p.weight for p in passes] or [0.0], dtype=np.float32), num),
        np.resize(np.array([p.stands_for for p in passes] or [1.0], dtype=np.float32), num),
        np.resize([int(p.labelled) for p in passes] or [1], num),
        _types(split, slices, rows.shape),
    )


def _pad(
    split: TokenizedSplit, step: StepPlan, slices: Sequence[IntArray], least: int = 1
) -> tuple[IntArray, IntArray, IntArray]:
    """Rows, mask and words of `slices`, padded to `least` tokens or more; of one unlabelled token
    if there are none."""
    shape = max(len(slices), 1), max(least, *map(len, slices), 0)
    rows = np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    words = np.full(shape, -1, dtype=np.int64)
    for place, tokens in enumerate(slices):
        rows[place, : len(tokens)] = np.searchsorted(step.token_ids, split.token_ids[tokens])
        mask[place, : len(tokens)] = 1
        words[place, : len(tokens)] = split.words[tokens]
    mask[:, 0] = 1
    return rows, mask, words


def _context_labels(split: TokenizedSplit, slices: Sequence[IntArray], words: IntArray) -> IntArray:
    """What the teacher learns of the tokens of `slices`, in the shape of their `words`."""
    if split.queries is None:
        return split.labels_of(words)
    labels = np.full(words.shape, IGNORED, dtype=np.int64)
    for place, tokens in enumerate(slices):
        labels[place, : len(tokens)] = split.queries.context_labels[tokens]
    return labels


def _types(
    split: TokenizedSplit, slices: Sequence[IntArray], shape: tuple[int, ...]
) -> IntArray | None:
    """Types of the tokens of `slices`, padded to a shape."""
    if split.token_types is None:
        return None
    types = np.zeros(shape, dtype=np.int64)
    for place, tokens in enumerate(slices):
        types[place, : len(tokens)] = split.token_types[tokens]
    return types
