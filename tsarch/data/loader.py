"""Which contexts make the batch of a step: a pure function of (seed, epoch, step)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain, pairwise

import numpy as np

from tsarch.records import IntArray, int_array
from tsarch.seeding import generator

_SHARDS = 64
_GROUP = 16
"""Batches that stand in the order of their sizes, see `alike_neighbours`."""


@dataclass(frozen=True)
class Position:
    """A place in the training data; `step` alone restores it."""

    step: int
    epoch: int
    batch: int


@dataclass(frozen=True)
class Limits:
    """What a batch has at most, unless it is of one context."""

    tokens: int
    """Padded tokens: longest context × contexts."""
    windows: int | None = None
    """None: as many as there are."""


@dataclass(frozen=True)
class Contexts:
    """Contexts in an order in which they are cut into batches."""

    lengths: IntArray
    """(contexts,) tokens of each."""
    windows: IntArray | None = None
    """(contexts,) windows of each, where they are limited."""

    def __len__(self) -> int:
        return len(self.lengths)

    def reversed(self) -> Contexts:
        """The last one first."""
        return Contexts(self.lengths[::-1], None if self.windows is None else self.windows[::-1])

    def reach(self, start: int, limits: Limits) -> int:
        """Where a batch from `start` on must end."""
        most = limits.tokens // int(self.lengths[start])
        longest = np.maximum.accumulate(self.lengths[start : start + most])
        fits = longest * np.arange(1, len(longest) + 1) <= limits.tokens
        if limits.windows is not None:
            assert self.windows is not None
            fits &= np.cumsum(self.windows[start : start + most]) <= limits.windows
        return start + max(int(fits.sum()), 1)


class BatchPlan:
    """Batches of all epochs, by token budget over length buckets.

    Contexts are shuffled, brought into the order of their length bucket and cut into as few batches
    as `limits` allow, as even as can be; then the batches are shuffled, and those of like sizes
    brought together (`alike_neighbours`).

    Of more than `shuffled_contexts` contexts so many at a time are: `_SHARDS` stretches of
    neighbours, drawn anew in every epoch. What is held of an epoch is one block of these.
    """

    def __init__(
        self,
        lengths: IntArray,
        limits: Limits,
        num_buckets: int,
        num_epochs: int,
        seed: int,
        shuffled_contexts: int,
        num_windows: IntArray | None = None,
    ) -> None:
        """`num_windows`: (num_contexts,) of each context, where they are limited."""
        assert len(lengths) > 0
        self._lengths = lengths
        self._num_windows = num_windows
        self._limits = limits
        self._num_buckets = num_buckets
        self._seed = seed
        self._shard = max(shuffled_contexts // _SHARDS, 1)
        self._num_blocks = -(-len(lengths) // shuffled_contexts)
        self.block = lru_cache(maxsize=2)(self._block)
        sizes = [
            num_batches(self._contexts_of(self._order(epoch, block)[0]), limits)
            for epoch in range(num_epochs)
            for block in range(self._num_blocks)
        ]
        self._block_starts = [0, *accumulate(sizes)]
        self.epoch_starts = self._block_starts[:: self._num_blocks]
        """Step at which each epoch starts; the last entry is the number of all steps."""

    @property
    def num_steps(self) -> int:
        """Steps of all epochs."""
        return self.epoch_starts[-1]

    def position(self, step: int) -> Position:
        """Epoch and batch of a step."""
        assert 0 <= step < self.num_steps
        epoch = bisect_right(self.epoch_starts, step) - 1
        return Position(step, epoch, step - self.epoch_starts[epoch])

    def contexts(self, step: int) -> IntArray:
        """Context numbers of the global batch of `step`."""
        assert 0 <= step < self.num_steps
        number = bisect_right(self._block_starts, step) - 1
        block = self.block(*divmod(number, self._num_blocks))
        return block[step - self._block_starts[number]]

    def epoch(self, epoch: int) -> tuple[IntArray, ...]:
        """All batches of an epoch."""
        blocks = (self.block(epoch, block) for block in range(self._num_blocks))
        return tuple(chain.from_iterable(blocks))

    def _contexts(self, epoch: int, block: int) -> IntArray:
        """Contexts that are shuffled together, in order."""
        total = len(self._lengths)
        if self._num_blocks == 1:
            return np.arange(total)
        shards = generator(self._seed, "shards", epoch).permutation(-(-total // self._shard))
        own = np.sort(np.array_split(shards, self._num_blocks)[block])
        contexts = (own[:, None] * self._shard + np.arange(self._shard)).ravel()
        return contexts[contexts < total]

    def _order(self, epoch: int, block: int) -> tuple[IntArray, np.random.Generator]:
        """Shuffled contexts in the order of their buckets, and what shuffles their batches."""
        rng = generator(self._seed, "batches", epoch, *([block] if block else []))
        order = rng.permutation(self._contexts(epoch, block))
        buckets = _buckets(self._lengths[order], self._num_buckets)
        return order[np.argsort(buckets, kind="stable")], rng

    def _block(self, epoch: int, block: int) -> tuple[IntArray, ...]:
        order, rng = self._order(epoch, block)
        cuts = even_cuts(self._contexts_of(order), self._limits)
        batches = [order[start:stop] for start, stop in pairwise(cuts)]
        sizes = int_array([self._lengths[batch].sum() for batch in batches])
        shuffled = rng.permutation(len(batches))
        rises = bool(rng.integers(2))
        return tuple(batches[i] for i in alike_neighbours(shuffled, sizes, rises))

    def _contexts_of(self, order: IntArray) -> Contexts:
        windows = None if self._num_windows is None else self._num_windows[order]
        return Contexts(self._lengths[order], windows)


def fill_batches(order: IntArray, lengths: IntArray, batch_tokens: int) -> list[IntArray]:
    """Cut `order` into batches whose padded size is at most `batch_tokens`."""
    batches: list[list[int]] = []
    longest = 0
    for context in order.tolist():
        longest = max(longest, int(lengths[context]))
        if not batches or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            longest = int(lengths[context])
        batches[-1].append(context)
    return [np.array(batch, dtype=np.int64) for batch in batches]


def num_batches(contexts: Contexts, limits: Limits) -> int:
    """Into how many batches `even_cuts` cuts contexts in order."""
    start = number = 0
    while start < len(contexts):
        start, number = contexts.reach(start, limits), number + 1
    return number


def even_cuts(contexts: Contexts, limits: Limits) -> list[int]:
    """Where to cut contexts into as few batches as `limits` allow, of about equally many real
    tokens: 0, the start of the second, …, the end of the last.

    In a pipeline a small batch beside a large one leaves a stage waiting. Each cut is where what is
    left would be shared evenly, but no later than the limits allow, and no earlier than the batches
    that follow can make up for.
    """
    # How far the last k batches reach back: where cut k from the end must be at least.
    earliest, backwards = [len(contexts)], contexts.reversed()
    while earliest[-1] > 0:
        reached = backwards.reach(len(contexts) - earliest[-1], limits)
        earliest.append(len(contexts) - reached)
    totals = np.concatenate([[0], np.cumsum(contexts.lengths)])
    cuts = [0]
    for left, least in zip(range(len(earliest) - 1, 0, -1), earliest[-2::-1], strict=True):
        done = int(totals[cuts[-1]])
        even = _nearest(totals, done + (int(totals[-1]) - done) // left)
        cuts.append(min(max(even, least), contexts.reach(cuts[-1], limits)))
    return cuts


def _nearest(rising: IntArray, value: int) -> int:
    """Place of the nearest number to one that is within them."""
    after = int(np.searchsorted(rising, value))
    before = max(after - 1, 0)
    return before if value - rising[before] <= rising[after] - value else after


def alike_neighbours(order: IntArray, sizes: IntArray, rises: bool) -> IntArray:
    """`order` in groups whose `sizes` rise and fall by turns, the first one as told.

    In a pipeline a stage works on a batch while the other one works on its neighbour, and waits
    where that is larger. Within so few batches their order stays as good as random to learning.
    """
    groups = np.array_split(order, max(len(order) // _GROUP, 1))
    ranked = [group[np.argsort(sizes[group], kind="stable")] for group in groups]
    return np.concatenate([g if (k % 2 == 0) == rises else g[::-1] for k, g in enumerate(ranked)])


def evaluation_batches(lengths: IntArray, batch_tokens: int) -> list[IntArray]:
    """All contexts once, longest first, in batches of at most `batch_tokens` padded tokens."""
    return fill_batches(np.argsort(-lengths, kind="stable"), lengths, batch_tokens)


def _buckets(lengths: IntArray, num_buckets: int) -> IntArray:
    """(num_contexts,) bucket of each context; edges are quantiles of the lengths."""
    edges = np.quantile(lengths, np.linspace(0, 1, num_buckets + 1)[1:-1])
    return np.searchsorted(edges, lengths, side="left").astype(np.int64)
