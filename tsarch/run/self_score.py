"""Each split scored against itself: what not even a model that is always right can reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tsarch.blueprint import Blueprint
from tsarch.prepare import Prepared
from tsarch.records import TokenizedSplit
from tsarch.tasks.base import Task
from tsarch.tasks.registry import make_task

_EVALUATED = ("validation", "test")


def with_notes(blueprint: Blueprint, prepared: Prepared) -> Prepared:
    """The data of a run, with remarks on the scores that its splits can have."""
    task = make_task(blueprint.task.name, prepared.labels, blueprint.task)
    notes = self_score_notes(task, prepared.splits)
    return replace(prepared, notes=(*prepared.notes, *notes))


def can_tell(task: Task, split: TokenizedSplit) -> bool:
    """Whether a split's main metric can be better for one model than for another."""
    right = task.metrics(split, task.perfect(split))[task.main_metric]
    return task.lower_is_better or right > 0.0


def self_score_notes(task: Task, splits: Mapping[str, TokenizedSplit]) -> list[str]:
    """What a user should know of the scores that the splits can have."""
    notes = []
    for name in _EVALUATED:
        if lacks := task.lacks(splits[name]):
            empty = not can_tell(task, splits[name])
            means = f": {task.main_metric} is 0 there, whatever is predicted" if empty else ""
            kept = "; the last weights are kept" if empty and name == "validation" else ""
            notes.append(f"the {name} split {lacks}{means}{kept}")
    return notes
