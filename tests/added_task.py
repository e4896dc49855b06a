"""A task that tsarch doesn't have, in one file: multiple choice by another name."""

from __future__ import annotations

from tsarch.task_names import TASKS
from tsarch.tasks.multiple_choice import ChoiceColumns, ChoiceReader, ChoiceTask

NAME = "added_choice"


class AddedColumns(ChoiceColumns):
    """Columns of `added_choice`."""


class AddedReader(ChoiceReader):
    """Rows of multiple choice."""


class AddedTask(ChoiceTask):
    """Scored as multiple choice is."""


COLUMNS, READER, TASK = AddedColumns, AddedReader, AddedTask


def register() -> None:
    """What the line in `tsarch/task_names.py` would do."""
    TASKS[NAME] = __name__
