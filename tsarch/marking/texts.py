"""Generated texts beside their references."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

from tsarch.data.source_target import SourceTarget
from tsarch.marking.records import Fault, Marks, ScoreTable
from tsarch.tasks.base import GenerativeTask
from tsarch.tasks.text_metrics import chrf

WRONG_TEXT = "other_text"


def mark_texts(task: GenerativeTask, rows: Sequence[SourceTarget], texts: Sequence[str]) -> Marks:
    """The texts of some rows, worst first."""
    metric, worth = text_scores(task, rows, texts)
    is_right = [_is_right(task, *own) for own in zip(rows, texts, strict=True)]
    faults = [
        _fault(number, rows[number], texts[number], metric, worth[number])
        for number, right in enumerate(is_right)
        if not right
    ]
    values = [fmean(worth), median(worth), min(worth), sum(is_right), len(rows)] if rows else []
    columns = ["texts", f"mean {metric}", "median", "worst", "the same", "support"]
    return Marks(
        sorted(faults, key=lambda own: own.score),
        sum(is_right),
        None,
        ScoreTable(columns, [["all", *values]] if rows else []),
        np.array(texts, dtype=object),
        np.array(worth),
    )


def text_scores(
    task: GenerativeTask, rows: Sequence[SourceTarget], texts: Sequence[str]
) -> tuple[str, list[float]]:
    """A metric, and its value for each text by itself: ROUGE-L or edit similarity where it is the
    task's, else chrF (BLEU is 0 for most single texts)."""
    own = [([text], [row.targets]) for row, text in zip(rows, texts, strict=True)]
    for metric in ("rougeL", "edit_similarity"):
        if metric in task.text_marks:
            return metric, [task.text_metrics(*each)[metric] for each in own]
    return "chrf", [chrf(*each) for each in own]


def _is_right(task: GenerativeTask, row: SourceTarget, text: str) -> bool:
    return text in {task.as_written(target) for target in row.targets}


def _fault(number: int, row: SourceTarget, text: str, metric: str, score: float) -> Fault:
    details: dict[str, Any] = {
        "text": row.source,
        "gold": list(row.targets),
        "predicted": text,
        "metric": metric,
    }
    return Fault(number, WRONG_TEXT, score, " | ".join(row.targets), text, (), details)
