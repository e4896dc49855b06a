"""When a rank printed what is in its log: noted beside it, since libraries in C print there too.

`rank-N.times` has lines `SIZE TIME`: by that time, in seconds since 1970 on the rank's clock, the
log had so many bytes. The log itself is as without it, whole up to a crash.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from tsarch.clock import now_s
from tsarch.telling.logs import times_file

_EVERY_S = 0.1


class LogTimes:
    """Looks at a log ten times a second."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._is_followed = True
        threading.Thread(target=self._follow, name="log times", daemon=True).start()

    def end(self) -> None:
        """Look no more."""
        self._is_followed = False

    def _follow(self) -> None:
        size = 0
        with suppress(OSError), times_file(self._log).open("a", encoding="ascii") as times:
            while self._is_followed:
                grown = self._log.stat().st_size
                if grown != size:
                    size = grown
                    times.write(f"{size} {now_s():.3f}\n")
                    times.flush()
                time.sleep(_EVERY_S)
