"""The report's tables of mistakes, from `errors.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsarch.telling.step_table import show_metric

SHOWN_AT_ONCE = 8
"""Mistakes of the first mode that are shown without a click."""


@dataclass(frozen=True)
class HeatCell:
    """A count with its colour."""

    count: int
    share: float
    """Of its row, 0 to 1."""
    right: bool


@dataclass(frozen=True)
class HeatMap:
    """Counts of what was said, by what is right."""

    said: list[str]
    rows: list[tuple[str, list[HeatCell], int]]
    """What is right, its cells, and their sum."""


@dataclass(frozen=True)
class LabelTable:
    """Scores of every label by all modes."""

    name: str
    columns: list[str]
    """Of each mode."""
    rows: list[tuple[str, int, list[list[str]]]]
    """Label, number of it, and for each mode its cells."""


@dataclass(frozen=True)
class Difference:
    """Two modes where they differ."""

    one: str
    other: str
    num: int
    one_better: float
    """Share of `num`, as the next two."""
    other_better: float
    neither: float


def heat_map(counts: Mapping[str, Any]) -> HeatMap:
    """From a mode's counts."""
    rows = []
    for name, own, right in zip(counts["gold"], counts["counts"], counts["right"], strict=True):
        total = sum(own)
        cells = [HeatCell(n, n / total if total else 0.0, r) for n, r in zip(own, right)]
        rows.append((name, cells, total))
    return HeatMap(counts["said"], rows)


def label_table(scores: Mapping[str, Any]) -> LabelTable:
    """From all modes' scores: labels that any of them has, in the first one's order."""
    tables = list(scores.values())
    names = dict.fromkeys(row[0] for table in tables for row in table["rows"])
    columns = tables[0]["columns"]
    support = columns.index("support")
    counts = (support, len(columns) - 1 if columns[-1] == "predicted" else support)
    shown = [place for place in range(1, len(columns)) if place not in counts]
    by_mode = [{row[0]: row for row in table["rows"]} for table in tables]
    rows = []
    for name in names:
        own = [mode.get(name) for mode in by_mode]
        number = next(row[support] for row in own if row)
        cells = [[_cell(row, place) for place in shown] for row in own]
        rows.append((name, number, cells))
    return LabelTable(columns[0], [columns[place] for place in shown], rows)


def _cell(row: Sequence[Any] | None, place: int) -> str:
    if row is None:
        return "–"
    value = row[place]
    return f"{value:,}" if isinstance(value, int) else show_metric(value)


def agreement_matrix(errors: Mapping[str, Any]) -> list[tuple[str, list[float | None]]]:
    """Mode → share of the units on which each mode says the same; None: itself."""
    modes, units = list(errors["scores"]), max(errors["units"], 1)
    same = {frozenset((own["one"], own["other"])): own["same"] for own in errors["agreement"]}
    return [
        (one, [None if one == other else same[frozenset((one, other))] / units for other in modes])
        for one in modes
    ]


def differences(errors: Mapping[str, Any]) -> list[Difference]:
    """Of every two modes that differ anywhere."""
    found = []
    for own in errors["agreement"]:
        counts = own["one_better"], own["other_better"], own["neither"]
        if num := sum(counts):
            found.append(Difference(own["one"], own["other"], num, *(n / num for n in counts)))
    return found
