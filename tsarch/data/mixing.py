"""Labelled contexts with unlabelled ones beside them: one split, and the batches of both."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tsarch.data.loader import BatchPlan, Limits
from tsarch.data.merging import merged
from tsarch.records import IntArray, TokenizedSplit
from tsarch.seeding import generator


@dataclass(frozen=True)
class MixedSplit(TokenizedSplit):
    """A training split, and after it what has no labels. There `labels` are 0, which nobody reads:
    losses of labels leave these contexts out, whatever the task."""

    num_labelled: int = 0
    """Contexts of the training split, which come first."""

    def labelled(self, contexts: IntArray) -> NDArray[np.bool_]:
        """(n,) which of some contexts have labels that are learned."""
        return contexts < self.num_labelled


def mixed(train: TokenizedSplit, unlabelled: TokenizedSplit) -> MixedSplit:
    """Both as one split."""
    both = merged([train, unlabelled])
    values = {own.name: getattr(both, own.name) for own in fields(TokenizedSplit)}
    values["labels"] = both.labels.copy()
    values["labels"][train.num_words :] = 0
    return MixedSplit(**values, num_labelled=train.num_contexts)


class MixedPlan(BatchPlan):
    """The batches of a training split as they are without it, each with a share of the unlabelled
    contexts.

    These go round and round, in another order each time, and an epoch takes the next ones, `ratio`
    tokens for each of its labelled ones. Of those the short ones go to batches of short contexts,
    so that little is padded. A pure function of (seed, epoch), whatever came before.
    """

    def __init__(
        self,
        lengths: IntArray,
        num_labelled: int,
        ratio: float,
        limits: Limits,
        num_buckets: int,
        num_epochs: int,
        seed: int,
        shuffled_contexts: int,
        num_windows: IntArray | None = None,
    ) -> None:
        """`lengths`, `num_windows`: (num_contexts,) of all, the labelled ones first."""
        self._others = lengths[num_labelled:]
        self._num_labelled = num_labelled
        self._ratio = ratio
        windows = None if num_windows is None else num_windows[:num_labelled]
        super().__init__(
            lengths[:num_labelled],
            limits,
            num_buckets,
            num_epochs,
            seed,
            shuffled_contexts,
            windows,
        )

    def _block(self, epoch: int, block: int) -> tuple[IntArray, ...]:
        batches = super()._block(epoch, block)
        own = [int(self._lengths[batch].sum()) for batch in batches]
        before = sum(int(self._lengths[self._contexts(epoch, b)].sum()) for b in range(block))
        start = self._ratio * (epoch * int(self._lengths.sum()) + before)
        beside = self._share(start, start + self._ratio * sum(own))
        beside = beside[np.argsort(self._others[beside], kind="stable")]
        mean_lengths = [tokens / len(batch) for tokens, batch in zip(own, batches, strict=True)]
        order = np.argsort(mean_lengths, kind="stable")
        reached = np.cumsum(self._others[beside])
        total = float(reached[-1]) if len(reached) else 0.0
        ends = [total * tokens / sum(own) for tokens in accumulate(own[n] for n in order)]
        middles = reached - self._others[beside] / 2
        cuts = np.searchsorted(middles, [0.0, *ends[:-1]])
        parts = np.split(beside, cuts[1:])
        shares = {int(n): part for n, part in zip(order, parts, strict=True)}
        return tuple(
            np.concatenate([batch, self._num_labelled + shares[n]])
            for n, batch in enumerate(batches)
        )

    def _share(self, start: float, stop: float) -> IntArray:
        """Unlabelled contexts whose middles are between two places of the endless row of tokens
        that all of them make, round after round."""
        total = int(self._others.sum())
        found = []
        for number in range(int(start // total), int(stop // total) + 1):
            order = generator(self._seed, "unlabelled", number).permutation(len(self._others))
            own = self._others[order]
            middles = number * total + np.cumsum(own) - own / 2
            found.append(order[(middles >= start) & (middles < stop)])
        return np.concatenate(found)
