"""Tasks by the name that a config gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tsarch.data.rows import RowSchema
from tsarch.tasks.base import GenerativeTask, Task
from tsarch.tasks.classification import ClassificationRows, ClassificationTask
from tsarch.tasks.dialogue import DialogueRows, DialogueTask
from tsarch.tasks.ner import NerRows, NerTask
from tsarch.tasks.qa import QaRows, QaTask
from tsarch.tasks.relation import RelationRows, RelationTask
from tsarch.tasks.summarization import SummarizationRows, SummarizationTask
from tsarch.tasks.translation import TranslationRows, TranslationTask


class _Entry(NamedTuple):
    rows: Callable[[], RowSchema]
    task: Callable[[Sequence[str]], Task]


_TASKS = {
    "ner": _Entry(NerRows, NerTask),
    "classification": _Entry(ClassificationRows, ClassificationTask),
    "relation": _Entry(RelationRows, RelationTask),
    "qa": _Entry(QaRows, QaTask),
    "translation": _Entry(TranslationRows, TranslationTask),
    "summarization": _Entry(SummarizationRows, SummarizationTask),
    "dialogue": _Entry(DialogueRows, DialogueTask),
}


def row_schema(name: str) -> RowSchema:
    """How the rows of the task called `name` are read."""
    return _TASKS[name].rows()


def make_task(name: str, labels: Sequence[str]) -> Task:
    """The task called `name` over `labels`."""
    return _TASKS[name].task(labels)


def table_metrics(name: str) -> tuple[str, ...]:
    """Metrics of the task called `name` that the final table shows."""
    return _TASKS[name].task(()).table_metrics


def is_generative(name: str) -> bool:
    """Whether the targets of the task called `name` are texts."""
    return isinstance(_TASKS[name].task(()), GenerativeTask)
