"""From the ranks' predictions to metrics, mode by mode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tsarch.config import MODES, Mode
from tsarch.records import IntArray, Predictions, TokenizedSplit
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
        scores.append((metrics[task.main_metric], -abs(weight - 0.5), place))
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
    labels: dict[Mode, list[tuple[IntArray, IntArray]]] = {
        "teacher": [(p.words, p.teacher) for p in predictions],
        "student": [(p.words, p.student) for p in predictions],
        "joint": [(p.words, p.joint[place]) for p in predictions],
        "student_alone": [(p.words, p.student_alone) for p in predictions],
    }
    metrics = {mode: task.metrics(split, _joined(split, labels[mode])) for mode in MODES}
    return Evaluation(metrics, joint_weight)


def _joined(split: TokenizedSplit, shares: list[tuple[IntArray, IntArray]]) -> IntArray:
    """(num_words,) label ids from the ranks' shares; every word must be there once."""
    result = np.full(split.num_words, -1, dtype=np.int64)
    for words, labels in shares:
        result[words] = labels
    assert sum(len(words) for words, _ in shares) == split.num_words
    assert (result >= 0).all(), "a word was not predicted"
    return result
