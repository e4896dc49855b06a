"""Labels of rows beside the right ones: of texts, and of pairs of entities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tsarch.marking.counting import counted, label_scores
from tsarch.marking.records import Fault, Marks, Span, body_of
from tsarch.records import TokenizedSplit
from tsarch.tasks.answers import Label, Relation
from tsarch.tasks.chinese import joined

WRONG_LABEL = "wrong_label"


def mark_labels(
    split: TokenizedSplit, gold: Sequence[Label | Relation], said: Sequence[Label | Relation]
) -> Marks:
    """The labels of all rows."""
    faults = [
        _fault(number, split.rows[number], right, own)
        for number, (right, own) in enumerate(zip(gold, said, strict=True))
        if right.name != own.name
    ]
    cells = [(right.name, own.name) for right, own in zip(gold, said, strict=True)]
    names = Counter(name for cell in cells for name in cell)
    return Marks(
        sorted(faults, key=lambda own: -own.score),
        len(split.rows) - len(faults),
        counted(cells, [name for name, _ in names.most_common()]),
        label_scores(
            [right for right, _ in cells],
            [own for _, own in cells],
            [own for right, own in cells if right == own],
        ),
        np.array([own for _, own in cells], dtype=object),
        np.array([right == own for right, own in cells], dtype=float),
    )


def label_spans(row: Any) -> tuple[Span, ...]:
    """The entities that a relation is of; of a text nothing."""
    if not hasattr(row, "head"):
        return ()
    bounds = {name: getattr(row, name) for name in ("head", "tail")}
    return tuple(Span(own[0], own[1], "gold", name) for name, own in bounds.items())


def _fault(number: int, row: Any, gold: Label | Relation, said: Label | Relation) -> Fault:
    body = body_of(row)
    details: dict[str, Any] = {"text": body if isinstance(body, str) else joined(body)}
    if isinstance(said, Relation):
        details |= {"words": list(row.tokens), "head": list(row.head), "tail": list(row.tail)}
    details |= {
        "gold": gold.name,
        "predicted": said.name,
        "gold_score": said.scores.get(gold.name),
    }
    return Fault(number, WRONG_LABEL, said.score, gold.name, said.name, label_spans(row), details)
