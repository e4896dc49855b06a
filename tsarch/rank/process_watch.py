"""A thread of the driver's that asks the processes of a host how they are (on a cluster:
`cluster/watch.py`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from tsarch.rank.api import ProcessApi, name_of
from tsarch.rank.hangs import Finding, find_hang
from tsarch.rank.lines import Line
from tsarch.rank.status import BUILDING, Status

_POLL_S = 1.0
_SILENT_S = 2.5
"""So long without an answer is worth a thought."""
_BUILDING_S = 60.0
"""Longer patience with processes that start, since imports can keep every thread waiting."""


class ProcessWatch:
    """Watches ranks until `stop`."""

    def __init__(self, lines: Sequence[Line], hang_timeout_s: float) -> None:
        """`lines`: those on which ranks answer meanwhile."""
        self._lines = lines
        self._hang_timeout_s = hang_timeout_s
        self._asked: dict[int, int] = {}
        self._heard_s = [time.monotonic()] * len(lines)
        self._ended = threading.Event()
        self.statuses: dict[int, Status] = {}
        """What each rank said last."""
        self.finding: Finding | None = None
        """What was found wrong first."""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def silent_s(self, rank: int) -> float:
        """Seconds since a rank said something."""
        return time.monotonic() - self._heard_s[rank]

    def stop(self) -> None:
        """Ask no more."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_POLL_S) and self.finding is None:
            for rank, line in enumerate(self._lines):
                self._ask(rank, line)
            self.finding = self._look()

    def _ask(self, rank: int, line: Line) -> None:
        line.read()
        number = self._asked.get(rank)
        if number is not None and not line.has(number):
            return
        if number is not None:
            status = line.take(number).value
            if isinstance(status, Status):
                self.statuses[rank] = status
                self._heard_s[rank] = time.monotonic()
        self._asked[rank] = line.ask(name_of(ProcessApi.status), ())

    def _look(self) -> Finding | None:
        """What is wrong with processes that still are; the crew sees to those that are gone."""
        there = [rank for rank, line in enumerate(self._lines) if not line.is_closed]
        silent = [rank for rank in there if self.silent_s(rank) > _POLL_S + _SILENT_S]
        frozen = tuple(rank for rank in silent if self.silent_s(rank) > self._patience_s(rank))
        if frozen:
            return Finding("frozen", frozen, self.silent_s(frozen[0]))
        return None if silent else find_hang(self.statuses, self._hang_timeout_s)

    def _patience_s(self, rank: int) -> float:
        status = self.statuses.get(rank)
        builds = status is None or status.command in BUILDING
        return self._hang_timeout_s + (_BUILDING_S if builds else 0.0)
