"""What the seconds of a command went into, from the start of its process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tsarch.clock import now_s

_REST = "everything else"


class Timings:
    """Seconds by phase. Phases may lie in one another; each counts without those inside it."""

    def __init__(self, started_s: float) -> None:
        """`started_s`: on the run's clock (`clock.py`)."""
        self._started_s = started_s
        self._seconds: dict[str, float] = {}
        self._inside: list[float] = []
        """Of each phase that goes on, seconds of those inside it."""
        self._marks: dict[str, float] = {}
        self._has_begun = False

    def begin(self) -> None:
        """A command begins. The first one began with its process; a later one begins now."""
        if self._has_begun:
            self._started_s, self._seconds, self._marks = now_s(), {}, {}
        self._has_begun = True

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """What is done within is `phase` (of a function, as its decorator, each call); more of one
        name add up. Of the main thread alone."""
        started_s = time.perf_counter()
        self._seconds.setdefault(phase, 0.0)
        self._inside.append(0.0)
        try:
            yield
        finally:
            spent_s = time.perf_counter() - started_s
            self._seconds[phase] += spent_s - self._inside.pop()
            if self._inside:
                self._inside[-1] += spent_s

    def add(self, phase: str, seconds: float) -> None:
        """Seconds that nobody measured while they passed."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def mark(self, name: str, at_s: float | None = None) -> None:
        """Something happened, now or at a time on the run's clock; only the first time counts."""
        self._marks.setdefault(name, (now_s() if at_s is None else at_s) - self._started_s)

    def phases(self) -> dict[str, float]:
        """Phase → seconds so far, in the order of their first beginning, and what is in none."""
        total_s = now_s() - self._started_s
        rest_s = max(total_s - sum(self._seconds.values()), 0.0)
        return {**self._seconds, _REST: rest_s}

    def as_json(self) -> dict[str, object]:
        """For files: seconds from the start of the command to what was marked (`…_s`), and by
        phase."""
        marks = {f"{name}_s": seconds for name, seconds in self._marks.items()}
        return {**marks, "total_s": now_s() - self._started_s, "phases_s": self.phases()}


def process_started_s() -> float:
    """When this process started, on the run's clock; where the system doesn't tell: now."""
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return now_s()
    return now_s() - age_s


TIMINGS = Timings(process_started_s())
"""Those of this process."""
TIMINGS.add("starting Python", max(now_s() - process_started_s(), 0.0))
