"""Work that takes nothing from what others do: a spare process imports while ranks train."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")


def in_spare_time(work: Callable[[], Result]) -> Result:
    """What `work` gives, done in a thread of its own that has a core only while nobody else wants
    it, where the system knows such threads (`SCHED_IDLE` of Linux).

    A thread, since one that gives way may not stop doing so without privileges; those that it
    starts give way too.
    """
    with ThreadPoolExecutor(1, "spare time", initializer=_give_way) as thread:
        return thread.submit(work).result()


def _give_way() -> None:
    idle = getattr(os, "SCHED_IDLE", None)
    if idle is not None:
        with suppress(OSError):  # some containers allow no choice
            os.sched_setscheduler(0, idle, os.sched_param(0))  # of this thread alone
