"""From probabilities to labels: the likeliest of a word, and the vote on the label of a row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tsarch.records import FloatArray, IntArray, TokenizedSplit


def likeliest(probabilities: FloatArray) -> IntArray:
    """(…, labels) → (…) label ids; of equally likely labels the first."""
    ids: IntArray = probabilities.argmax(-1)
    return ids


def row_probabilities(
    split: TokenizedSplit, probabilities: FloatArray, labels: Sequence[str]
) -> list[dict[str, float]]:
    """Label → mean of the (num_words, labels) probabilities at a row's places, for every row."""
    means = row_means(split, probabilities)
    return [dict(zip(labels, own, strict=True)) for own in means.tolist()]


def row_means(split: TokenizedSplit, scores: FloatArray) -> NDArray[np.float64]:
    """(num_words, …) scores → (num_rows, …) their means over a row's places."""
    sums = np.add.reduceat(scores.astype(np.float64), split.sentence_offsets[:-1], axis=0)
    counts = np.diff(split.sentence_offsets)
    return sums / counts.reshape(-1, *[1] * (scores.ndim - 1))


def only_one(split: TokenizedSplit, labels: Sequence[str], kind: str) -> str:
    """That all rows of a split have the same label, in words; empty: they don't."""
    own = np.unique(split.labels)
    return f"has one {kind} only, `{labels[int(own[0])]}`" if len(own) == 1 else ""


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
