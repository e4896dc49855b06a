"""What people are shown of a split's mistakes: `errors.json` of a run."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import asdict
from typing import Any

from tsarch.config import Mode
from tsarch.marking.agreement import agreements
from tsarch.marking.marked import Marked
from tsarch.marking.records import Fault

_SHOWN_FAULTS = 20
_SHOWN_ROWS = 5


def error_summary(marked: Marked, split: str, mode: Mode, num_rows: int) -> dict[str, Any]:
    """Counts, scores, agreement and examples of all modes.

    Args:
        mode: the one that is shown first.
        num_rows: of the split.
    """
    marks = marked.marks
    return {
        "split": split,
        "mode": mode,
        "rows": len(marked.rows),
        "rows_of_split": num_rows,
        "unit": marked.unit,
        "units": len(marks[mode].said),
        "kinds": {m: _kinds(marked, m) for m in marks},
        "scores": {m: asdict(own.scores) for m, own in marks.items()},
        "counts": {m: own.counts and asdict(own.counts) for m, own in marks.items()},
        "agreement": [asdict(own) for own in agreements(marks)],
        "mistakes": {
            m: [
                {"kind": fault.kind, "times": times, **asdict(marked.shown_fault(fault))}
                for fault, times in _telling(marked, m)
            ]
            for m in marks
        },
        "sample": [asdict(own) for own in marked.sample(mode, _SHOWN_ROWS)],
    }


def _telling(marked: Marked, mode: Mode) -> list[tuple[Fault, int]]:
    """The first of every kind in turn, each with how often it is made: one entity is missed, or
    taken for the same other thing, in many sentences."""
    together: dict[str, dict[Any, list[Fault]]] = {}
    for own in marked.marks[mode].faults:
        same = (own.gold, own.said) if marked.unit == "words" else own.row
        together.setdefault(own.kind, {}).setdefault(same, []).append(own)
    rounds = itertools.zip_longest(*(own.values() for own in together.values()))
    found = [own for each in rounds for own in each if own is not None]
    return [(own[0], len(own)) for own in found[:_SHOWN_FAULTS]]


def _kinds(marked: Marked, mode: Mode) -> dict[str, int]:
    """How many answers are right, and how many are wrong in which way."""
    own = marked.marks[mode]
    return {"right": own.num_right, **Counter(fault.kind for fault in own.faults)}
