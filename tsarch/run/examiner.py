"""Measures the splits of a run with its ranks."""

from __future__ import annotations

from tsarch.blueprint import Blueprint
from tsarch.prepare import Prepared
from tsarch.rank.crew import Crew
from tsarch.run.evaluate import (
    JOINT_WEIGHTS,
    Evaluation,
    choose_and_evaluate,
    evaluate_modes,
    predict,
)
from tsarch.run.texts import Sample, with_texts
from tsarch.tasks.base import Task


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

    def test(self, joint_weight: float) -> tuple[Evaluation, list[Sample]]:
        """Metrics of the test split, and what was generated of it."""
        split = self._prepared.splits["test"]
        predictions = predict(
            self._blueprint, self._task, self._crew, "test", split, [joint_weight]
        )
        return with_texts(
            self._crew,
            self._blueprint,
            self._prepared,
            self._task,
            "test",
            evaluate_modes(self._task, split, predictions, joint_weight),
        )
