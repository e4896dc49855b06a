"""What a run remembers of its failures: when, why, and what each cost."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from tsarch.clock import now_s
from tsarch.redaction import redact


@dataclass
class Restart:
    """One failure, and the run going on after it."""

    cause: str
    """First line of the message."""
    noticed_s: float
    """When, in seconds since 1970."""
    failed_at: int
    """The step that would have been next."""
    resumed_at: int | None = None
    """The step that it went on with."""
    down_s: float | None = None
    """Seconds from noticing the failure to the end of the first step after it."""
    repeated_s: float = 0.0
    """Seconds of training until it was where it had been."""


def _gist(cause: str) -> str:
    """A failure's first line without the rank it names first, and without numbers (of processes,
    seconds, bytes)."""
    line = re.sub(r"\w+ \d+ \(rank \d+\)", "a rank", cause.splitlines()[0])
    return re.sub(r"\d+", "#", line)


class History:
    """All failures of a run in this process."""

    def __init__(self) -> None:
        self._started_s = now_s()
        self.restarts: list[Restart] = []
        self._next_step = 0
        self._back_s = 0.0
        self._has_trained = False
        self._in_vain: list[str] = []

    @property
    def wall_s(self) -> float:
        """Seconds of the run so far, breaks before a resume left out."""
        return now_s() - self._started_s

    def resumed(self, wall_s: float) -> None:
        """The run goes on from a checkpoint at which it had taken so long."""
        self._started_s = min(self._started_s, now_s() - wall_s)

    def failed(self, cause: str, noticed_s: float) -> None:
        """A failure was noticed, at `noticed_s` of `now_s`."""
        self._in_vain = [] if self._has_trained else [*self._in_vain, _gist(cause)]
        self._has_trained = False
        self.restarts.append(Restart(redact(cause.splitlines()[0]), noticed_s, self._next_step))

    def trained(self, step: int) -> None:
        """A step was done."""
        self._has_trained = True
        self._next_step = step + 1
        if not self.restarts:
            return
        last = self.restarts[-1]
        if last.down_s is None:
            self._back_s = now_s()
            last.resumed_at, last.down_s = step, self._back_s - last.noticed_s
        elif step < last.failed_at:
            last.repeated_s = now_s() - self._back_s

    @property
    def repeats(self) -> bool:
        """Whether the last two failures are alike, and neither came after a step: a third attempt
        would fail so too."""
        return len(self._in_vain) > 1 and self._in_vain[-1] == self._in_vain[-2]

    def as_json(self) -> list[dict[str, Any]]:
        """For `summary.json`."""
        return [asdict(restart) for restart in self.restarts]
