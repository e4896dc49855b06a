"""What a run's files say, of the kinds that those who read them need: anyone may have changed them,
and a disk may have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tsarch.errors import UserError, one_line
from tsarch.telling.json_files import read_rows
from tsarch.telling.run_folder import trained_summary

Row = Mapping[str, Any]

_MOST = 1e100
"""Of any number of a run; sums of them are finite."""
_COUNTED = ("tokens", "wall_s")
"""What every step has."""


def step_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of a run's `metrics.jsonl`.

    Raises:
        UserError: it can't be read, or a row is none of a step.
    """
    return _rows(folder / "metrics.jsonl", _of_a_step)


def evaluation_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of a run's `evaluations.jsonl`.

    Raises:
        UserError: it can't be read, or a row is none of an evaluation.
    """
    return _rows(folder / "evaluations.jsonl", _of_an_evaluation)


def read_summary(folder: Path, numbers: Sequence[Sequence[str]]) -> Row | None:
    """A run's `summary.json`, None if it has none.

    Args:
        numbers: places of what must be a number, if it is there.

    Raises:
        UserError: it can't be read, or its metrics or numbers are none.
    """
    found = trained_summary(folder)
    for wrong in () if found is None else _of_a_summary(found, numbers):
        raise UserError.single(str(folder / "summary.json"), f"is damaged: {wrong}.")
    return found


def value_at(found: Any, place: Sequence[str]) -> Any:
    """What is at a place in sections of sections; None: nothing."""
    for key in place:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _rows(path: Path, mistakes: Callable[[Row], Iterator[str]]) -> list[dict[str, Any]]:
    try:
        rows = read_rows(path)
    except OSError as error:
        raise UserError.single(str(path), f"can't be read: {one_line(error)}.") from None
    for number, row in enumerate(rows, 1):
        for wrong in mistakes(row):
            hint = "Restore the file, or remove the line."
            raise UserError.single(f"{path}:{number}", f"is damaged: {wrong}.", hint)
    return rows


def _of_a_step(row: Row) -> Iterator[str]:
    if not _is_count(row.get("step")):
        yield "`step` is no whole number"
    for name, value in row.items():
        if value is not None and not _is_number(value):
            yield f"`{name}` is no number"
    for name in _COUNTED:
        if row.get(name) is None:
            yield f"`{name}` is missing"


def _of_an_evaluation(row: Row) -> Iterator[str]:
    if not isinstance(row.get("split"), str):
        yield "`split` is no name"
    if not _is_count(row.get("step")):
        yield "`step` is no whole number"
    yield from _of_metrics(row.get("metrics"), "metrics")


def _of_a_summary(found: Row, numbers: Sequence[Sequence[str]]) -> Iterator[str]:
    for split in ("after", "validation"):
        if split in found:
            yield from _of_metrics(found[split], split)
    for place in numbers:
        value = value_at(found, place)
        if value is not None and not _is_number(value):
            yield f"`{'.'.join(place)}` is no number"


def _of_metrics(modes: Any, name: str) -> Iterator[str]:
    """Of what should be mode → metric → value."""
    if not isinstance(modes, dict) or not all(isinstance(own, dict) for own in modes.values()):
        yield f"`{name}` has no metrics of modes"
        return
    for mode, metrics in modes.items():
        for metric, value in metrics.items():
            if value is not None and not _is_number(value, _is_infinite):
                yield f"`{name}.{mode}.{metric}` is no number"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_number(value: Any, otherwise: Callable[[Any], bool] = lambda _: False) -> bool:
    return type(value) in (int, float) and (-_MOST < value < _MOST or otherwise(value))


def _is_infinite(value: Any) -> bool:
    """As metrics may be, of a model that is lost."""
    return isinstance(value, float) and not math.isfinite(value)
