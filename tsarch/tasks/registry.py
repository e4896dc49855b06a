"""Tasks by the name that a config gives them; a task's module is imported when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, cast

from tsarch.config import DataConfig, TaskConfig
from tsarch.data.row_reader import RowReader
from tsarch.task_names import TASKS
from tsarch.tasks.base import Task, is_writing


def _module(name: str) -> Any:
    return importlib.import_module(TASKS[name])


def row_reader(name: str, data: DataConfig, labelled: bool = True) -> RowReader[Any]:
    """How the rows of the task called `name` are read, with their labels or without."""
    return cast(RowReader[Any], _module(name).READER(data, labelled))


def make_task(name: str, labels: Sequence[str], config: TaskConfig | None = None) -> Task:
    """The task called `name` over `labels`; `config`: how it is measured, None: as is usual.

    Raises:
        UserError: the config and the labels don't fit.
    """
    return cast(Task, _module(name).TASK(labels, config or TaskConfig(name=name)))


def table_metrics(name: str) -> tuple[str, ...]:
    """Metrics of the task called `name` that the final table shows, of those that were measured."""
    return make_task(name, ()).table_metrics


def is_generative(name: str) -> bool:
    """Whether the targets of the task called `name` are texts."""
    return is_writing(make_task(name, ()))
