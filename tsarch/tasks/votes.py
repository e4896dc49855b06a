"""The vote on the label of a row that has one."""

from __future__ import annotations

import itertools

import numpy as np

from tsarch.records import IntArray, TokenizedSplit


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
