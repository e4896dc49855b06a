"""Tasks by the name that a config gives them."""

from __future__ import annotations

from collections.abc import Sequence

from tsarch.tasks.base import Task
from tsarch.tasks.ner import NerTask

_TASKS = {"ner": NerTask}


def make_task(name: str, labels: Sequence[str]) -> Task:
    """The task called `name` over `labels`."""
    return _TASKS[name](labels)


def table_metrics(name: str) -> tuple[str, ...]:
    """Metrics of the task called `name` that the final table shows."""
    return _TASKS[name].table_metrics
