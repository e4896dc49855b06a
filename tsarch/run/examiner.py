"""Measures the splits of a run with its ranks."""

from __future__ import annotations

from tsarch.blueprint import Blueprint
from tsarch.prepare import Prepared
from tsarch.rank.crew import Crew
from tsarch.run.evaluate import JOINT_WEIGHTS, Evaluation, choose_and_evaluate, predict
from tsarch.run.marked_split import Examined, examine
from tsarch.tasks.base import Task

_MOST_SCORES = 50_000_000
"""Numbers of all modes that a driver takes from its ranks at most, 4 bytes each."""


class Examiner:
    """Asks a crew for predictions and compares them with the labels."""

    def __init__(self, blueprint: Blueprint, prepared: Prepared, task: Task, crew: Crew) -> None:
        self._blueprint = blueprint
        self._prepared = prepared
        self._task = task
        self._crew = crew

    def validate(self) -> Evaluation:
        """Metrics of the validation split, with the weight of `joint` that is best there."""
        split = self._prepared.splits["validation"]
        predictions = predict(
            self._blueprint, self._task, self._crew, "validation", split, JOINT_WEIGHTS
        )
        return choose_and_evaluate(self._task, split, predictions)

    def test(self, joint_weight: float, marks: bool) -> Examined:
        """Metrics of the test split, what was generated of it, and, with `marks`, its mistakes
        where there is room for the scores."""
        split = self._prepared.splits["test"]
        num_scores = split.num_words * len(self._prepared.labels) * len(self._blueprint.modes)
        return examine(
            self._crew,
            self._blueprint,
            self._prepared,
            self._task,
            "test",
            joint_weight,
            marks and num_scores <= _MOST_SCORES,
        )
