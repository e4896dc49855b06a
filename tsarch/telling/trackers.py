"""Who is told what a run does: files, curves, and whatever else `tracking.trackers` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from tsarch.config import Mode
from tsarch.records import TickReport
from tsarch.telling.aside import Aside
from tsarch.telling.json_files import JsonFiles
from tsarch.telling.step_table import StepRecord
from tsarch.telling.tracker import Metrics, TrackedRun, Tracker
from tsarch.telling.tracker_choice import is_of_the_user, tracker_named


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
            tracker.close(kind is None)


def open_trackers(run: TrackedRun, say: Callable[[str], None]) -> Trackers:
    """The trackers of a run; `say`: tells the user of one that fails. Their libraries are imported
    here, and used each in a thread of its own."""
    makers = {name: tracker_named(name) for name in run.tracking.trackers}
    asides = [
        Aside(name, partial(make, run), say, copies=is_of_the_user(name))
        for name, make in makers.items()
    ]
    return Trackers([JsonFiles(run.folder, run.topology, run.is_traced), *asides])
