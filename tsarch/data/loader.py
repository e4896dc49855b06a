"""Which contexts make the batch of a step: a pure function of (seed, epoch, step)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np

from tsarch.records import IntArray
from tsarch.seeding import generator


@dataclass(frozen=True)
class Position:
    """A place in the training data; `step` alone restores it."""

    step: int
    epoch: int
    batch: int


class BatchPlan:
    """Batches of all epochs, by token budget over length buckets.

    Contexts are shuffled, brought into the order of their length bucket and cut into as few batches
    as a padded size (longest × count) of at most `batch_tokens` allows, as even as can be; then the
    batches are shuffled.
    """

    def __init__(
        self, lengths: IntArray, batch_tokens: int, num_buckets: int, num_epochs: int, seed: int
    ) -> None:
        assert len(lengths) > 0
        self._lengths = lengths
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._buckets = _buckets(lengths, num_buckets)
        self.epoch = lru_cache(maxsize=2)(self._epoch)
        sizes = (
            len(fill_batches(self._order(epoch)[0], lengths, batch_tokens))
            for epoch in range(num_epochs)
        )
        self.epoch_starts = [0, *accumulate(sizes)]
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
        place = self.position(step)
        return self.epoch(place.epoch)[place.batch]

    def _order(self, epoch: int) -> tuple[IntArray, np.random.Generator]:
        """Shuffled contexts in the order of their buckets, and what shuffles their batches."""
        rng = generator(self._seed, "batches", epoch)
        order = rng.permutation(len(self._lengths))
        return order[np.argsort(self._buckets[order], kind="stable")], rng

    def _epoch(self, epoch: int) -> tuple[IntArray, ...]:
        order, rng = self._order(epoch)
        batches = even_batches(order, self._lengths, self._batch_tokens)
        return tuple(batches[i] for i in rng.permutation(len(batches)))


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


def even_batches(order: IntArray, lengths: IntArray, batch_tokens: int) -> list[IntArray]:
    """Cut `order` into no more batches than `fill_batches`, of about equally many real tokens.

    In a pipeline a small batch beside a large one leaves a stage waiting. Each cut is where what is
    left would be shared evenly, but no later than the padded size allows, and no earlier than the
    batches that follow can make up for.
    """
    own = lengths[order]
    # How far the last k batches reach back: where cut k from the end must be at least.
    earliest, backwards = [len(own)], own[::-1]
    while earliest[-1] > 0:
        reached = _reach(backwards, len(own) - earliest[-1], batch_tokens)
        earliest.append(len(own) - reached)
    totals = np.concatenate([[0], np.cumsum(own)])
    cuts = [0]
    for left, least in zip(range(len(earliest) - 1, 0, -1), earliest[-2::-1], strict=True):
        done = int(totals[cuts[-1]])
        even = _nearest(totals, done + (int(totals[-1]) - done) // left)
        cuts.append(min(max(even, least), _reach(own, cuts[-1], batch_tokens)))
    return [order[start:stop] for start, stop in pairwise(cuts)]


def _nearest(rising: IntArray, value: int) -> int:
    """Place of the nearest number to one that is within them."""
    after = int(np.searchsorted(rising, value))
    before = max(after - 1, 0)
    return before if value - rising[before] <= rising[after] - value else after


def _reach(lengths: IntArray, start: int, batch_tokens: int) -> int:
    """Where a batch from `start` on must end."""
    most = batch_tokens // int(lengths[start])
    longest = np.maximum.accumulate(lengths[start : start + most])
    return start + max(int((longest * np.arange(1, len(longest) + 1) <= batch_tokens).sum()), 1)


def evaluation_batches(lengths: IntArray, batch_tokens: int) -> list[IntArray]:
    """All contexts once, longest first, in batches of at most `batch_tokens` padded tokens."""
    return fill_batches(np.argsort(-lengths, kind="stable"), lengths, batch_tokens)


def _buckets(lengths: IntArray, num_buckets: int) -> IntArray:
    """(num_contexts,) bucket of each context; edges are quantiles of the lengths."""
    edges = np.quantile(lengths, np.linspace(0, 1, num_buckets + 1)[1:-1])
    return np.searchsorted(edges, lengths, side="left").astype(np.int64)
