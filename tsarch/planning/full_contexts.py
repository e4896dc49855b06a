"""A run's data as it would be with contexts and windows of full length, to plan without data."""

from __future__ import annotations

import numpy as np

from tsarch.blueprint import Blueprint
from tsarch.prepare import Prepared
from tsarch.records import IGNORED, TokenizedSplit
from tsarch.tasks.registry import is_generative

_ROW_LABELS = {"classification": ("a", "b"), "relation": ("a", "b"), "ranking": ("0", "1")}
_WORD_LABELS = {"ner": ("O", "B-X", "I-X"), "multiple_choice": ("O", "right", "wrong")}
_LABELS = {**_WORD_LABELS, **_ROW_LABELS}
_BATCHES = 2
_MOST_TOKENS = 20_000_000
_MOST_ROWS = 32_768
"""Different tokens of a large batch of texts, about."""


def full_contexts(blueprint: Blueprint) -> Prepared:
    """Some batches of contexts that have as many tokens as the stages may read; every token is a
    word of its own."""
    length = blueprint.batches.context_tokens
    number = min(_BATCHES * max(blueprint.batches.tokens // length, 1), _MOST_TOKENS // length)
    number = max(number, 1)
    starts = np.arange(number + 1) * length
    tokens = np.arange(number * length)
    bounds = np.unique(np.append(np.arange(0, length, blueprint.window_tokens), length))
    windows = np.concatenate(
        [np.stack([bounds[:-1], bounds[1:]], 1) + start for start in starts[:-1]]
    )
    words = _words(blueprint, number, length, bounds)
    labelled = np.flatnonzero(words >= 0)
    words[labelled] = np.arange(len(labelled))
    rows = min(_MOST_ROWS, blueprint.table.shape[0])
    split = TokenizedSplit(
        token_ids=tokens % rows,
        words=words,
        context_offsets=starts,
        windows=windows,
        window_offsets=np.arange(number + 1) * (len(bounds) - 1),
        labels=np.where(labelled >= 0, 1, IGNORED),
        sentence_offsets=np.arange(len(labelled) + 1),
    )
    names = ("train", "validation", "test")
    beside = split if blueprint.unlabelled.is_used else None
    labels = _LABELS.get(blueprint.task.name, ())
    return Prepared(dict.fromkeys(names, split), labels, (), 0, unlabelled=beside)


def _words(blueprint: Blueprint, number: int, length: int, bounds: np.ndarray) -> np.ndarray:
    """(tokens,) 0 where a word starts, −1 elsewhere: everywhere, at the first token of each window
    where rows have a label, or on the targets that are written."""
    one = np.zeros(length, dtype=np.int64)
    if blueprint.task.name in _ROW_LABELS:
        one[:] = -1
        one[bounds[:-1]] = 0
    elif is_generative(blueprint.task.name):
        one[: max(length - blueprint.task.max_target_tokens, 0)] = -1
    return np.tile(one, number)
