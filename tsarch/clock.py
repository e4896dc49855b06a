"""The one clock of a run: steps, busy seconds and traces are all measured with it."""

from __future__ import annotations

import time

_OFFSET_S = time.time() - time.perf_counter()


def now_s() -> float:
    """Seconds since 1970 (UTC), that never jump within a process; comparable between hosts as far
    as their system clocks agree."""
    return _OFFSET_S + time.perf_counter()
