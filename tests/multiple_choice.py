"""An eighth task, to show what adding one takes: multiple choice, such as commonsense questions.

A row has a `question`, `choices` (a list of strings) and `answer`, the number of the right one from
0. The student's window is the row; a choice is as likely as "right" is at its first word.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tsarch.config import ColumnsConfig, DataConfig
from tsarch.data.rows import (
    Layout,
    Place,
    Row,
    RowOrMistakes,
    check_text,
    check_words,
    make_row,
    no_column,
)
from tsarch.errors import Mistake
from tsarch.records import Array, TokenizedSplit
from tsarch.task_names import TASKS
from tsarch.tasks.base import LabelTask, Metrics
from tsarch.tasks.collect import Collector, WordCollector, label_probabilities

MARK = "*"
LABELS = ("O", "right", "wrong")


class ChoiceRows:
    """Words of the question, then each choice behind a mark; its first word is labelled."""

    layout: Layout = "words"

    def needed(self, columns: ColumnsConfig) -> tuple[str, ...]:
        """All three."""
        return "question", "choices", "answer"

    def word_lists(self, columns: ColumnsConfig) -> tuple[str, ...]:
        """The choices."""
        return ("choices",)

    def label_column(self, columns: ColumnsConfig) -> str:
        """The answer."""
        return "answer"

    def read(self, place: Place, raw: dict[str, Any], data: DataConfig) -> RowOrMistakes:
        """The answer must be one of the choices."""
        wrong = [check_text(place, raw, "question"), check_words(place, raw, "choices")]
        mistakes = [mistake for mistake in wrong if mistake is not None]
        if "answer" not in raw:
            mistakes.append(no_column(str(place), "answer", raw))
        if mistakes:
            return None, mistakes
        choices, answer = raw["choices"], raw["answer"]
        if not all(choice.split() for choice in choices):
            return None, [Mistake(str(place), "`choices` has an empty one.")]
        if answer not in range(len(choices)):
            what = f"`answer` is {answer!r}, not one of the {len(choices)} choices (from 0)."
            return None, [Mistake(str(place), what)]
        tokens = raw["question"].split()
        tags = ["O"] * len(tokens)
        for number, choice in enumerate(choices):
            words = choice.split()
            tokens += [MARK, *words]
            tags += ["O", "right" if number == answer else "wrong", *["O"] * (len(words) - 1)]
        return make_row(place, raw, data.columns, tokens, tags)

    def label_names(self, row: Row) -> Iterable[tuple[str, str]]:
        """None: what a choice is called doesn't matter."""
        return ()

    def labels(self, names: Iterable[str]) -> tuple[str, ...]:
        """Always the same."""
        return LABELS


class ChoiceTask(LabelTask):
    """The likeliest choice, scored by accuracy."""

    main_metric = "accuracy"
    table_metrics: tuple[str, ...] = ("accuracy",)

    def collector(self, joint_weights: Sequence[float]) -> Collector:
        """Probability of "right"; `joint` is the mean of both models'."""
        right = LABELS.index("right")
        return WordCollector(joint_weights, label_probabilities, lambda scores: scores[..., right])

    def metrics(self, split: TokenizedSplit, predicted: Array) -> Metrics:
        """Share of the rows whose likeliest choice is the right one."""
        right = []
        for start, stop in zip(split.sentence_offsets, split.sentence_offsets[1:]):
            labels, scores = split.labels[start:stop], predicted[start:stop]
            marks = labels != LABELS.index("O")
            best = int(np.argmax(scores[marks]))
            right.append(labels[marks][best] == LABELS.index("right"))
        return {"accuracy": float(np.mean(right))}


ROWS, TASK = ChoiceRows, ChoiceTask


def register_on_rank(_worker: object) -> None:
    """What the line in `tsarch/task_names.py` would do, in the process of a rank."""
    TASKS["multiple_choice"] = __name__
