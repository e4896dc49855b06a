"""From the ranks' predictions to metrics, mode by mode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tsarch.config import MODES, Mode
from tsarch.records import Array, IntArray, Predictions, TokenizedSplit
from tsarch.tasks.base import Metrics, Task

JOINT_WEIGHTS = [round(0.1 * i, 1) for i in range(11)]
"""Weights of the teacher that `joint` may have; the best on validation is taken."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of all modes on one split."""

    metrics: dict[Mode, Metrics]
    joint_weight: float


def choose_and_evaluate(
    task: Task, split: TokenizedSplit, predictions: list[Predictions]
) -> Evaluation:
    """Metrics of all modes on validation, with the weight of `joint` that is best there.

    `predictions` were made for `JOINT_WEIGHTS`. Of equally good weights the one nearest to a half
    is taken.
    """
    scores = []
    for place, weight in enumerate(JOINT_WEIGHTS):
        metrics = task.metrics(
            split, _joined(split, [(p.words, p.joint[place]) for p in predictions])
        )
        scores.append((score(task, metrics), -abs(weight - 0.5), place))
    _, _, best = max(scores)
    return evaluate_modes(task, split, predictions, JOINT_WEIGHTS[best], place=best)


def evaluate_modes(
    task: Task,
    split: TokenizedSplit,
    predictions: list[Predictions],
    joint_weight: float,
    place: int = 0,
) -> Evaluation:
    """Metrics of all modes; `place` is the row of `joint_weight` in the predictions."""
    said: dict[Mode, list[tuple[IntArray, Array]]] = {
        "teacher": [(p.words, p.teacher) for p in predictions],
        "student": [(p.words, p.student) for p in predictions],
        "joint": [(p.words, p.joint[place]) for p in predictions],
        "student_alone": [(p.words, p.student_alone) for p in predictions],
    }
    metrics = {mode: task.metrics(split, _joined(split, said[mode])) for mode in MODES}
    return Evaluation(metrics, joint_weight)


def score(task: Task, metrics: Metrics) -> float:
    """The main metric so that higher is better."""
    value = metrics[task.main_metric]
    return -value if task.lower_is_better else value


def _joined(split: TokenizedSplit, shares: list[tuple[IntArray, Array]]) -> Array:
    """(num_words, …) from the ranks' shares; every word must be there once."""
    words = np.concatenate([own for own, _ in shares])
    order = np.argsort(words)
    assert np.array_equal(words[order], np.arange(split.num_words)), "a word was not predicted once"
    joined: Array = np.concatenate([said for _, said in shares])[order]
    return joined
