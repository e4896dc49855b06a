"""How often, and with or without the teacher, the student goes over each window of a step."""

from __future__ import annotations

from collections.abc import Iterable

from tsarch.data.partition import WindowPass, context_windows
from tsarch.records import IntArray, TokenizedSplit
from tsarch.seeding import generator


def training_passes(
    split: TokenizedSplit,
    contexts: IntArray,
    seed: int,
    step: int,
    teacher_dropout: float,
    alone_weight: float,
    fed_weight: float = 1.0,
) -> dict[int, tuple[WindowPass, ...]]:
    """Passes of every window of a training batch (`student.teacher_dropout`).

    A pure function of (seed, step): the same draws at any number of replicas.
    """
    windows = _windows(split, contexts)
    draws = generator(seed, "teacher_dropout", step).random(len(windows))
    return {
        window: _passes(window, bool(draw >= teacher_dropout), alone_weight, fed_weight)
        for window, draw in zip(windows, draws)
    }


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
