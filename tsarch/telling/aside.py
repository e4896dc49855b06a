"""A tracker in a thread of its own: neither its time nor its failures are the run's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from queue import Full, Queue
from threading import Thread
from typing import Any

from tsarch.config import Mode
from tsarch.errors import one_line
from tsarch.records import TickReport
from tsarch.telling.step_table import StepRecord
from tsarch.telling.tracker import Metrics, Tracker

_MOST_WAITING = 10_000
"""Calls that may wait for a tracker."""
_PATIENCE_S = 60.0
"""For what is left to be told, at the end of a run."""


class Aside:
    """Passes on what it is told, in order, until the tracker fails or is too slow.

    Args:
        copies: pass on copies: what a user's own tracker does to them changes nothing in the run.
    """

    def __init__(
        self,
        name: str,
        open_tracker: Callable[[], Tracker],
        say: Callable[[str], None],
        patience_s: float = _PATIENCE_S,
        copies: bool = True,
    ) -> None:
        self._name = name
        self._say = say
        self._patience_s = patience_s
        self._copies = copies
        self._has_failed = False
        self._calls: Queue[tuple[str, tuple[Any, ...]]] = Queue(_MOST_WAITING)
        self._thread = Thread(target=self._work, args=(open_tracker,), daemon=True)
        self._thread.start()

    def ticks(self, reports: Sequence[TickReport], epoch: int) -> None:
        """See `Tracker`."""
        self._tell("ticks", reports, epoch)

    def step(self, row: StepRecord) -> None:
        """See `Tracker`."""
        self._tell("step", row)

    def evaluation(self, split: str, step: int, metrics: Mapping[Mode, Metrics]) -> None:
        """See `Tracker`."""
        self._tell("evaluation", split, step, metrics)

    def texts(self, when: str, texts: Sequence[Mapping[str, str]]) -> None:
        """See `Tracker`."""
        self._tell("texts", when, texts)

    def rewind(self, step: int, num_evaluations: int) -> None:
        """See `Tracker`."""
        self._tell("rewind", step, num_evaluations)

    def close(self, is_complete: bool) -> None:
        """See `Tracker`; waits until all is told, for a minute at most."""
        self._tell("close", is_complete)
        self._thread.join(self._patience_s)
        if self._thread.is_alive():
            self._fail(f"it has not taken in everything within {self._patience_s:.0f} s")

    def _tell(self, method: str, *arguments: Any) -> None:
        if self._has_failed:
            return
        try:
            given = deepcopy(arguments) if self._copies else arguments
            self._calls.put_nowait((method, given))
        except Full:
            self._fail(f"{_MOST_WAITING:,} calls wait for it")

    def _work(self, open_tracker: Callable[[], Tracker]) -> None:
        try:
            tracker = open_tracker()
            method = ""
            while method != "close":
                method, arguments = self._calls.get()
                getattr(tracker, method)(*arguments)
        except BaseException as error:  # whatever it is, training goes on
            self._fail(one_line(error))

    def _fail(self, why: str) -> None:
        """Tell the tracker nothing more, and say so the first time."""
        if not self._has_failed:
            self._has_failed = True
            self._say(f"warning: the tracker {self._name} is told nothing more: {why}")
