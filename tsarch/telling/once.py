"""A run at a service: one there too, however often it is interrupted, each point once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from tsarch.config import Mode
from tsarch.records import TickReport
from tsarch.telling.run_folder import write_atomically
from tsarch.telling.step_table import StepRecord
from tsarch.telling.tracker import Metrics, TrackedRun, evaluation_points, step_points

Points = tuple[int, Mapping[str, float]]
"""A step, and the curves' points there."""
_EVERY_S = 1.0
"""Between two calls of the service, which take their time."""


class Service(Protocol):
    """A run at a service that keeps curves."""

    id: str
    """By which it is found again."""

    def add(self, points: Sequence[Points]) -> None:
        """Add points, in order."""

    def close(self, is_complete: bool) -> None:
        """The run has ended, complete or not."""


@dataclass
class _Told:
    """What the service knows, as a file of the run folder has it."""

    id: str | None = None
    next_step: int = 0
    num_evaluations: int = 0


class Once:
    """A tracker that tells a service what it hasn't been told before.

    After a failure or on `--resume` steps come again, with the same losses; services can't forget
    points.
    """

    def __init__(
        self,
        run: TrackedRun,
        service: str,
        open_service: Callable[[str | None], Service],
        every_s: float = _EVERY_S,
    ) -> None:
        """`open_service`: opens the run of that id, or a new one. `every_s`: seconds between two
        calls of it."""
        self._file = run.folder / f"tracking-{service}.json"
        self._told = _read(self._file)
        self._service = open_service(self._told.id)
        self._told.id = self._service.id
        self._every_s = every_s
        self._added_s = time.monotonic()
        self._waiting: list[Points] = []
        self._num_evaluations = 0
        self._add()

    def ticks(self, reports: Sequence[TickReport], epoch: int) -> None:
        """There are no curves of ticks."""

    def step(self, row: StepRecord) -> None:
        """See `step_points`."""
        step = int(row["step"] or 0)
        if step < self._told.next_step:
            return
        self._told.next_step = step + 1
        self._waiting.append((step, step_points(row)))
        if time.monotonic() - self._added_s >= self._every_s:
            self._add()

    def evaluation(self, split: str, step: int, metrics: Mapping[Mode, Metrics]) -> None:
        """See `evaluation_points`."""
        self._num_evaluations += 1
        if self._num_evaluations <= self._told.num_evaluations:
            return
        self._told.num_evaluations = self._num_evaluations
        self._waiting.append((step, evaluation_points(split, metrics)))
        self._add()

    def texts(self, when: str, texts: Sequence[Mapping[str, str]]) -> None:
        """There are no curves of texts."""

    def rewind(self, step: int, num_evaluations: int) -> None:
        """What comes again is known by its number."""
        self._num_evaluations = num_evaluations

    def close(self, is_complete: bool) -> None:
        """Tell what is left."""
        self._add()
        self._service.close(is_complete)

    def _add(self) -> None:
        if self._waiting:
            self._service.add(self._waiting)
        self._waiting = []
        self._added_s = time.monotonic()
        write_atomically(self._file, json.dumps(asdict(self._told)) + "\n")


def _read(file: Path) -> _Told:
    return _Told(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else _Told()
