"""Tasks with one label a row: what they share in reading, and the vote on a row's label."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

from tsarch.data.rows import Layout, Row
from tsarch.records import IntArray, TokenizedSplit


class OneLabelRows:
    """The part of a `RowSchema` that is the same for all rows with one label."""

    layout: Layout = "rows"

    def label_names(self, row: Row) -> Iterable[tuple[str, str]]:
        """The row's label."""
        yield row.tags[0], str(row.place)

    def labels(self, names: Iterable[str]) -> tuple[str, ...]:
        """The labels of the training split."""
        return tuple(names)


def row_votes(split: TokenizedSplit, predicted: IntArray) -> IntArray:
    """(num_rows,) label of every row: what most of its labelled places say, of equals the first.

    Args:
        split: a split whose rows have one label each, at one place or more.
        predicted: (num_words,) label ids of these places.
    """
    bounds = itertools.pairwise(split.sentence_offsets.tolist())
    return np.array([_vote(predicted[start:stop]) for start, stop in bounds], dtype=np.int64)


def _vote(votes: IntArray) -> int:
    found, first, counts = np.unique(votes, return_index=True, return_counts=True)
    return int(found[np.lexsort((first, -counts))[0]])
