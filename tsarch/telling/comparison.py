"""Runs beside each other: where their configs differ, what they reached, how fast they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import Any

from tsarch.config import Mode
from tsarch.config_changes import shown
from tsarch.tasks.registry import table_metrics
from tsarch.telling.compared_runs import FIGURES, ComparedRun
from tsarch.telling.pages import show_bytes, show_count, show_seconds
from tsarch.telling.run_rows import value_at
from tsarch.telling.step_table import show_metric

NONE = "–"
_LABELS = ("run.name", "run.folder")
"""Keys that differ between any two runs and mean nothing."""
_SPLITS = ("test", "validation")
Show = Callable[[Any], str]


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    names: tuple[str, ...]
    cells: tuple[str, ...]
    """Of each run."""
    best: frozenset[int] = frozenset()
    """Runs with the best value; none where all are alike, or none is better."""


@dataclass(frozen=True)
class Comparison:
    """All of it but the curves."""

    runs: tuple[str, ...]
    notes: tuple[str, ...]
    """What keeps runs from being compared."""
    keys: tuple[Line, ...]
    """Keys of the config that differ."""
    metrics: tuple[Line, ...]
    """Split, mode and metric."""
    speed: tuple[Line, ...]


def compare_runs(runs: Sequence[ComparedRun]) -> Comparison:
    """All but the curves."""
    return Comparison(
        tuple(run.label for run in runs),
        tuple(_notes(runs)),
        tuple(_keys(runs)),
        tuple(_metrics(runs)),
        tuple(_speed(runs)),
    )


def _notes(runs: Sequence[ComparedRun]) -> Iterator[str]:
    tasks = list(dict.fromkeys(run.task for run in runs))
    if len(tasks) > 1:
        yield f"the runs have other tasks ({', '.join(tasks)}): their scores can't be compared"
    for run in runs:
        if run.summary is None:
            yield f"{run.label} has not finished: its scores are those of its last validation"
    for split in _SPLITS:
        digests = {run.digests.get(split) for run in runs} - {None}
        if len(digests) > 1:
            yield f"the runs have other {split} splits: their scores there can't be compared"


def _keys(runs: Sequence[ComparedRun]) -> Iterator[Line]:
    for key in dict.fromkeys(key for run in runs for key in run.keys):
        cells = tuple(shown(run.keys[key]) if key in run.keys else NONE for run in runs)
        if key not in _LABELS and len(set(cells)) > 1:
            yield Line((key,), cells)


def _metrics(runs: Sequence[ComparedRun]) -> Iterator[Line]:
    names = dict.fromkeys(n for run in runs for n in table_metrics(run.task))
    low = {run.main_metric for run in runs if run.lower_is_better}
    for split in _SPLITS:
        found = [run.metrics(split) for run in runs]
        for mode in dict.fromkeys(mode for own in found for mode in own):
            for name in names:
                values = [own[mode].get(name) if mode in own else None for own in found]
                yield _line((split, mode, name), values, show_metric, -1 if name in low else 1)


def _line(names: tuple[str, ...], values: Sequence[Any], show: Show, sign: int = 0) -> Line:
    """`sign`: 1 where more is better, −1 where less is, 0 where neither."""
    cells = tuple(NONE if value is None else show(value) for value in values)
    known = [sign * value for value in values if value is not None]
    best = frozenset[int]()
    if sign and len(set(known)) > 1:
        places = (i for i, v in enumerate(values) if v is not None and sign * v == max(known))
        best = frozenset(places)
    return Line(names, cells, best)


def _speed(runs: Sequence[ComparedRun]) -> Iterator[Line]:
    yield _line(("steps",), [len(run.steps) for run in runs], "{:,}".format)
    yield _line(("tokens",), [_total(run, "tokens") for run in runs], show_count)
    yield _line(("seconds of training",), [_total(run, "wall_s") for run in runs], show_seconds, -1)
    yield _line(("tokens a second",), [_rate(run) for run in runs], "{:,.0f}".format, 1)
    yield _line(("median step",), [_median_step_s(run) for run in runs], show_seconds, -1)
    for name, (show, sign) in _SHOWN.items():
        values = [value_at(run.summary, FIGURES[name]) for run in runs]
        if any(value is not None for value in values):
            yield _line((name,), values, show, sign)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


_SHOWN: Mapping[str, tuple[Show, int]] = {
    "whole run": (show_seconds, -1),
    "teacher ranks busy": (_percent, 1),
    "student ranks busy": (_percent, 1),
    "idle (bubble fraction)": (_percent, -1),
    "real tokens of the teacher": (_percent, 1),
    "real tokens of the student": (_percent, 1),
    "peak memory of a teacher rank": (show_bytes, -1),
    "peak memory of a student rank": (show_bytes, -1),
    "link, a step": (show_bytes, -1),
    "tied exchange, a step": (show_bytes, -1),
    "teacher replicas": (str, 0),
    "student replicas": (str, 0),
    "restarts": (str, -1),
}
"""Name → how it is shown, and which way is better."""


def _total(run: ComparedRun, name: str) -> float:
    return float(sum(row[name] for row in run.steps))


def _rate(run: ComparedRun) -> float | None:
    seconds = _total(run, "wall_s")
    return _total(run, "tokens") / seconds if seconds > 0 else None


def _median_step_s(run: ComparedRun) -> float | None:
    return median(row["wall_s"] for row in run.steps) if run.steps else None


@dataclass(frozen=True)
class Curve:
    """Of a run."""

    run: str
    places: tuple[float, ...]
    """Steps, or seconds of training."""
    values: tuple[float, ...]


def validation_curves(
    runs: Sequence[ComparedRun], over_time: bool = False
) -> dict[tuple[Mode, str], list[Curve]]:
    """Mode and main metric → curve of each run that has both, at every validation."""
    curves: dict[tuple[Mode, str], list[Curve]] = {}
    for run in runs:
        seconds = list(accumulate((float(row["wall_s"]) for row in run.steps), initial=0.0))
        for mode in dict.fromkeys(mode for row in run.evaluations for mode in row["metrics"]):
            found = [
                (min(row["step"], len(run.steps)), value)
                for row in run.evaluations
                if (value := value_at(row, ("metrics", mode, run.main_metric))) is not None
            ]
            places = tuple(seconds[step] if over_time else float(step) for step, _ in found)
            values = tuple(float(value) for _, value in found)
            curves.setdefault((mode, run.main_metric), []).append(Curve(run.label, places, values))
    return curves


def step_curves(runs: Sequence[ComparedRun]) -> dict[str, list[Curve]]:
    """Each loss, and the speed, of each run at every step."""
    names = dict.fromkeys(n for run in runs for row in run.steps for n in row)
    shown = [n for n in names if n.startswith("loss_") or n == "tokens_per_s"]
    return {
        name: [
            Curve(
                run.label,
                tuple(float(row["step"]) for row in run.steps if row.get(name) is not None),
                tuple(float(row[name]) for row in run.steps if row.get(name) is not None),
            )
            for run in runs
        ]
        for name in shown
    }
