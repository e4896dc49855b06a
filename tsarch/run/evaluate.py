"""From the ranks' predictions to metrics, mode by mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Protocol

import numpy as np

from tsarch.blueprint import Blueprint
from tsarch.config import MEAN_MODES, MODES, STUDENT_MODES, Mode, Monitor
from tsarch.records import Array, IntArray, Predictions, Survey, TokenizedSplit, Windows
from tsarch.tasks.base import AnsweringTask, Metrics, Task

JOINT_WEIGHTS = [round(0.1 * i, 1) for i in range(11)]
"""Weights of the teacher that `joint` may have; the best on validation is taken."""
_NO_CHOICE = 0.5
"""Weight of `joint` where there is none to choose."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of all modes on one split."""

    metrics: dict[Mode, Metrics]
    joint_weight: float


class Predictor(Protocol):
    """The part of a `Crew` that evaluation needs."""

    def survey(self, split: str, windows: Windows | None = None) -> list[Survey]:
        """The teachers' predictions of a split, before windows are chosen, or the students' scores
        of the words of `windows`."""

    def evaluate(
        self,
        split: str,
        joint_weights: list[float],
        windows: Windows | None = None,
        undecided: bool = False,
    ) -> list[Predictions]:
        """Predict a split on all ranks; `windows`: in place of the split's own; `undecided`: give
        scores, for one weight (`AnsweringTask.score_collector`)."""


def predict(
    blueprint: Blueprint,
    task: Task,
    crew: Predictor,
    name: str,
    split: TokenizedSplit,
    joint_weights: list[float],
    undecided: bool = False,
) -> list[Predictions]:
    """Predictions of the split called `name`; `undecided`: see `scores_and_metrics`.

    Where the task chooses windows by what the teacher says, the teacher reads the split twice:
    first alone, and then, with the windows known, with the student; so it does where the student's
    scores of its states choose.
    """
    choice = task.window_choice
    if blueprint.drafting is not None:  # it answers nothing
        found = _of_words(crew.evaluate(name, [], None, undecided))
        return [replace(own, student=None, joint=None, student_alone=None) for own in found]
    if choice is None:
        return _of_words(crew.evaluate(name, joint_weights, None, undecided))
    graph = blueprint.topology.graph
    limits = blueprint.asked_window_tokens, blueprint.evaluation.windows
    if not graph.reading("contexts") or task.query == "student":
        tiles = choice.tiles(split, blueprint.asked_window_tokens)
        if blueprint.scorer is None:
            return _of_words(crew.evaluate(name, [], tiles))
        windows = choice.likely(split, _surveyed(split, crew.survey(name, tiles)), *limits)
        return [choice.inside(split.num_words, crew.evaluate(name, [], windows))]
    teacher = _surveyed(split, crew.survey(name))
    if not graph.reading("windows"):
        return [Predictions(np.arange(split.num_words), teacher=teacher)]
    windows = choice.windows(split, teacher, *limits)
    return [choice.complete(teacher, crew.evaluate(name, [], windows), joint_weights)]


def _surveyed(split: TokenizedSplit, surveys: Sequence[Survey]) -> Array:
    """(num_words, …) from the ranks' shares."""
    return in_order(split, [own.words for own in surveys], [own.predictions for own in surveys])


def _of_words(predictions: list[Predictions]) -> list[Predictions]:
    """Without those of ranks that had nothing to read, which don't tell what modes there are."""
    return [own for own in predictions if len(own.words)] or predictions


def choose_and_evaluate(
    task: Task, split: TokenizedSplit, predictions: list[Predictions]
) -> Evaluation:
    """Metrics of all modes on validation, with the weight of `joint` that is best there.

    `predictions` were made for `JOINT_WEIGHTS`. Of equally good weights the one nearest to a half
    is taken.
    """
    if predictions[0].joint is None:
        return evaluate_modes(task, split, predictions, _NO_CHOICE)
    scores = []
    for place, weight in enumerate(JOINT_WEIGHTS):
        metrics = task.metrics(split, _joined(split, predictions, "joint", place))
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
    """Metrics of all modes that there are; `place` is the row of `joint_weight` in the
    predictions."""
    metrics = {
        mode: task.metrics(split, _joined(split, predictions, mode, place))
        for mode in MODES
        if getattr(predictions[0], mode) is not None
    }
    return Evaluation(metrics, joint_weight)


def scores_and_metrics(
    task: AnsweringTask,
    split: TokenizedSplit,
    predictions: list[Predictions],
    joint_weight: float,
) -> tuple[dict[Mode, Array], Evaluation]:
    """(num_words, …) scores of all modes, as `AnsweringTask.answers` reads them, and the metrics of
    what they mean, from predictions that were left undecided, for the one weight."""
    scores = {
        mode: _joined(split, predictions, mode)
        for mode in MODES
        if getattr(predictions[0], mode) is not None
    }
    metrics = {mode: task.metrics(split, task.decided(own)) for mode, own in scores.items()}
    return scores, Evaluation(metrics, joint_weight)


def score(task: Task, metrics: Metrics) -> float:
    """The main metric so that higher is better."""
    value = metrics[task.main_metric]
    return -value if task.lower_is_better else value


def best_mode(task: Task, evaluation: Evaluation) -> Mode:
    """The mode with the best main metric, of equals the first."""
    return max(evaluation.metrics, key=lambda mode: score(task, evaluation.metrics[mode]))


def selection_score(task: Task, metrics: Mapping[Mode, Metrics], monitor: Monitor) -> float:
    """What decides on the best weights (`evaluation.monitor`); higher is better."""
    if monitor == "mean":
        modes = MEAN_MODES if "joint" in metrics else STUDENT_MODES
        return fmean(score(task, metrics[mode]) for mode in modes)
    return score(task, metrics[monitor])


def _joined(
    split: TokenizedSplit, predictions: Sequence[Predictions], mode: Mode, place: int = 0
) -> Array:
    """(num_words, …) of a mode from the ranks' shares (of `joint` for one weight)."""
    said = [getattr(own, mode) for own in predictions]
    shares = [own[place] if mode == "joint" else own for own in said]
    return in_order(split, [own.words for own in predictions], shares)


def in_order(split: TokenizedSplit, words: Sequence[IntArray], shares: Sequence[Array]) -> Array:
    """(num_words, …) from shares of it and their words; every word must be there once."""
    numbers = np.concatenate(words)
    order = np.argsort(numbers)
    assert np.array_equal(numbers[order], np.arange(split.num_words)), "a word was not predicted"
    joined: Array = np.concatenate(shares)[order]
    return joined
