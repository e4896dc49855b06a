"""How often, and with or without the teacher, the student goes over each window of a step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tsarch.data.partition import WindowPass, context_windows
from tsarch.records import IntArray, TokenizedSplit
from tsarch.seeding import generator

BoolArray = NDArray[np.bool_]


def training_passes(
    split: TokenizedSplit,
    contexts: IntArray,
    seed: int,
    step: int,
    teacher_dropout: float,
    alone_weight: float,
    fed_weight: float = 1.0,
    fed_share: float | None = None,
) -> dict[int, tuple[WindowPass, ...]]:
    """Passes of every window of a training batch (`student.teacher_dropout`, `student.fed_share`).

    With a `fed_share` each window has one of its two passes, which weighs the more the less often
    it is drawn, so that the expected loss is that of both. A pure function of (seed, step): the
    same draws at any number of replicas.
    """
    windows = _windows(split, contexts)
    draws = generator(seed, "teacher_dropout", step).random(len(windows))
    both = {
        window: _passes(window, bool(draw >= teacher_dropout), alone_weight, fed_weight)
        for window, draw in zip(windows, draws)
    }
    if fed_share is None:
        return both
    fed = _drawn(len(windows), fed_share, generator(seed, "fed_share", step))
    return {
        window: _one_of(both[window], is_fed, fed_share)
        for window, is_fed in zip(windows, fed.tolist())
    }


def without_labels(
    passes: dict[int, tuple[WindowPass, ...]],
    split: TokenizedSplit,
    contexts: IntArray,
    weight: float,
    wanted: Literal["all", "fed", "alone"],
) -> dict[int, tuple[WindowPass, ...]]:
    """The same where some of the contexts have no labels: of their windows those passes that
    distillation is for, which weigh `weight` times as much."""
    own = {
        window: tuple(
            replace(each, weight=each.weight * weight, labelled=False)
            for each in passes[window]
            if wanted == "all" or each.fed == (wanted == "fed")
        )
        for window in _windows(split, contexts)
    }
    return passes | own


def num_terms(split: TokenizedSplit, contexts: IntArray, per_sequence: bool) -> int:
    """What the student's losses of some contexts' windows are means over: words, or windows; 1, if
    there are none."""
    windows = _windows(split, contexts)
    if per_sequence:
        return max(len(windows), 1)
    places = [np.arange(*split.windows[window]) for window in windows]
    words = split.words[np.concatenate(places)] if places else np.empty(0)
    return max(int((words >= 0).sum()), 1)


def _one_of(
    passes: tuple[WindowPass, ...], is_fed: bool, fed_share: float
) -> tuple[WindowPass, ...]:
    """The fed or the other of two passes, in place of both; a single one stays."""
    if len(passes) < 2:
        return passes
    own = passes[0 if is_fed else 1]
    stands_for = 1 / (fed_share if is_fed else 1 - fed_share)
    return (replace(own, weight=own.weight * stands_for, stands_for=stands_for),)


def _drawn(number: int, share: float, rng: np.random.Generator) -> BoolArray:
    """(number,) bool, true for a share of places, each as likely as any other: one from each
    stretch of 1 / share places in random order, so that their number is as even as can be."""
    bounds = np.floor(np.arange(number + 1) * share + rng.random())
    return rng.permutation(np.diff(bounds) > 0)


def evaluation_passes(
    split: TokenizedSplit, contexts: IntArray, fed: bool = True
) -> dict[int, tuple[WindowPass, ...]]:
    """Every window once alone and, if the student is `fed`, once with the teacher before."""
    return {window: _passes(window, fed, 1.0, 1.0) for window in _windows(split, contexts)}


def alone_passes(split: TokenizedSplit, contexts: IntArray) -> dict[int, tuple[WindowPass, ...]]:
    """Every window once, of a student that nobody feeds."""
    return evaluation_passes(split, contexts, fed=False)


def _windows(split: TokenizedSplit, contexts: Iterable[int]) -> list[int]:
    return sorted(window for c in contexts for window in context_windows(split, c))


def _passes(
    window: int, fed: bool, alone_weight: float, fed_weight: float
) -> tuple[WindowPass, ...]:
    if not fed:
        return (WindowPass(window, False),)
    first = WindowPass(window, True, fed_weight)
    if alone_weight > 0:
        return first, WindowPass(window, False, alone_weight, second=True)
    return (first,)
