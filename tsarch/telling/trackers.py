"""Who is told what a run does: files, curves, and whatever else is added here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tsarch.config import Mode
from tsarch.records import TickReport
from tsarch.telling.curves import TensorBoard
from tsarch.telling.json_files import JsonFiles
from tsarch.telling.step_table import StepRecord
from tsarch.topology import Topology

Metrics = Mapping[str, float]


class Tracker(Protocol):
    """Is told what a run does while it does it, and keeps it.

    To add one, write a class with these methods in a file of its own in `telling/` (`curves.py` is
    the smallest example), import its library where it is used, and name it in `open_trackers`. All
    methods are called by the driver alone, between two commands to the ranks: what takes longer
    than a few milliseconds belongs into a thread of the tracker's. A tracker that can't be reached
    must not end the run: catch its library's errors and say so once.
    """

    def ticks(self, reports: Sequence[TickReport], epoch: int) -> None:
        """What the ranks report of some ticks, as it comes in; with every instruction if the run is
        traced."""

    def step(self, row: StepRecord) -> None:
        """A step is complete. Steps come in order, each once; `None` is a number that isn't
        finite."""

    def evaluation(self, split: str, step: int, metrics: Mapping[Mode, Metrics]) -> None:
        """Metrics of all modes on a split, after `step` steps."""

    def texts(self, when: str, texts: Sequence[Mapping[str, str]]) -> None:
        """Generated texts of the test split, `before` or `after` training."""

    def rewind(self, step: int, num_evaluations: int) -> None:
        """The run goes on from a checkpoint, before anything else is told: forget the steps from
        `step` on, which will come again, and all evaluations but the first so many."""

    def close(self) -> None:
        """The run has ended, well or not."""


class Trackers:
    """All trackers of a run; closes them at the end of its `with`."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers
        self.num_evaluations = 0
        """Evaluations told so far."""

    def ticks(self, reports: Sequence[TickReport], epoch: int) -> None:
        """See `Tracker`."""
        for tracker in self._trackers:
            tracker.ticks(reports, epoch)

    def step(self, row: StepRecord) -> None:
        """See `Tracker`."""
        for tracker in self._trackers:
            tracker.step(row)

    def evaluation(self, split: str, step: int, metrics: Mapping[Mode, Metrics]) -> None:
        """See `Tracker`."""
        self.num_evaluations += 1
        for tracker in self._trackers:
            tracker.evaluation(split, step, metrics)

    def texts(self, when: str, texts: Sequence[Mapping[str, str]]) -> None:
        """See `Tracker`."""
        for tracker in self._trackers:
            tracker.texts(when, texts)

    def rewind(self, step: int, num_evaluations: int) -> None:
        """See `Tracker`.

        Raises:
            UserError: what the run has written is damaged.
        """
        self.num_evaluations = num_evaluations
        for tracker in self._trackers:
            tracker.rewind(step, num_evaluations)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for tracker in self._trackers:
            tracker.close()


def open_trackers(folder: Path, topology: Topology, trace: bool) -> Trackers:
    """The trackers of a run with this folder."""
    return Trackers([JsonFiles(folder, topology, trace), TensorBoard(folder / "tensorboard")])
