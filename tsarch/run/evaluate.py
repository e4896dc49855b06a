"""From the ranks' predictions to metrics, mode by mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import numpy as np

from tsarch.config import MEAN_MODES, MODES, Config, Mode, Monitor
from tsarch.records import Array, IntArray, Predictions, Survey, TokenizedSplit, Windows
from tsarch.tasks.base import Metrics, Task

JOINT_WEIGHTS = [round(0.1 * i, 1) for i in range(11)]
"""Weights of the teacher that `joint` may have; the best on validation is taken."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of all modes on one split."""

    metrics: dict[Mode, Metrics]
    joint_weight: float


class Predictor(Protocol):
    """The part of a `Crew` that evaluation needs."""

    def survey(self, split: str) -> list[Survey]:
        """The teachers' predictions of a split, before windows are chosen."""

    def evaluate(
        self, split: str, joint_weights: list[float], windows: Windows | None = None
    ) -> list[Predictions]:
        """Predict a split on all ranks; `windows`: in place of the split's own."""


def predict(
    config: Config,
    task: Task,
    crew: Predictor,
    name: str,
    split: TokenizedSplit,
    joint_weights: list[float],
) -> list[Predictions]:
    """Predictions of the split called `name`.

    Where the task chooses windows, the teacher reads the split twice: first alone, and then, with
    the windows known, with the student.
    """
    choice = task.window_choice
    if choice is None:
        return crew.evaluate(name, joint_weights)
    teacher = _joined(split, [(own.words, own.predictions) for own in crew.survey(name)])
    windows = choice.windows(split, teacher, config.student.max_tokens, config.evaluation.windows)
    return [choice.complete(teacher, crew.evaluate(name, [], windows), joint_weights)]


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


def selection_score(task: Task, metrics: Mapping[Mode, Metrics], monitor: Monitor) -> float:
    """What decides on the best weights (`evaluation.monitor`); higher is better."""
    if monitor == "mean":
        return fmean(score(task, metrics[mode]) for mode in MEAN_MODES)
    return score(task, metrics[monitor])


def _joined(split: TokenizedSplit, shares: list[tuple[IntArray, Array]]) -> Array:
    """(num_words, …) from the ranks' shares; every word must be there once."""
    words = np.concatenate([own for own, _ in shares])
    order = np.argsort(words)
    assert np.array_equal(words[order], np.arange(split.num_words)), "a word was not predicted once"
    joined: Array = np.concatenate([said for _, said in shares])[order]
    return joined
