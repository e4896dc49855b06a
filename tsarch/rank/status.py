"""What a rank and its node tell of themselves while the rank works. No torch, no Ray."""

from __future__ import annotations

import os
import re
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tsarch.rank.activity import IDLE, Activity, read_note

BUILDING = ("starting", "probe", "warm_up", "leave", "offer_addresses", "join", "build")
"""Commands that may take long without a sign of progress: imports, downloads, compilers."""


@dataclass(frozen=True)
class Status:
    """A rank at a moment."""

    pid: int
    command: str
    """What the driver has asked for."""
    doing: str
    """The instruction of that, if it has some."""
    waits: bool
    """Whether the instruction waits for other ranks."""
    still_s: float
    """Seconds since the last command or instruction began."""
    rss_bytes: int
    """Memory of the process."""
    free_bytes: int
    """Memory of the host that is free."""
    total_bytes: int
    oom_kills: int | None
    """Processes that the kernel has killed on the host for lack of memory so far."""

    @property
    def is_busy(self) -> bool:
        """Whether it should be making progress."""
        return self.command != IDLE and self.command not in BUILDING


@dataclass(frozen=True)
class ProcessFacts:
    """What the node's kernel says of a process."""

    state: str | None
    """As in `ps`, such as `stopped`; None: there is no such process."""
    oom_kills: int | None
    doing: str | None
    """What it did last, by its note."""


_STARTED = "tsarch: rank"
_CRASH = re.compile(r"^\*\*\* (SIG\w+) received")  # as Ray's processes say it
_LINE_LENGTH = 200


def started_line(rank: int) -> str:
    """First line that a process writes to the log, which goes on from process to process."""
    return f"{_STARTED} {rank} is process {os.getpid()}"


@dataclass(frozen=True)
class Log:
    """The end of what the last process of a rank has printed."""

    lines: list[str]
    signal: str | None
    """Name of the signal that it has received and died of, if it could still say so."""


def read_log(log_file: Path, num_lines: int) -> Log:
    """The last lines of a rank's log, or those that tell of a crash."""
    lines = log_file.read_text(errors="replace").splitlines() if log_file.exists() else []
    starts = [number for number, line in enumerate(lines) if line.startswith(_STARTED)]
    own = [line[:_LINE_LENGTH] for line in lines[starts[-1] if starts else 0 :]]
    for number, line in enumerate(own):
        if crash := _CRASH.search(line):
            return Log(own[number : number + num_lines], crash.group(1))
    return Log(own[-num_lines:], None)


def says_nothing(log_file: Path) -> bool:
    """Whether a log only tells which processes there were."""
    lines = log_file.read_text(errors="replace").splitlines()
    return all(line.startswith(_STARTED) for line in lines)


def log_file(folder: Path, rank: int) -> Path:
    """What a rank prints."""
    return folder / f"rank-{rank}.log"


def note_file(log_file: Path) -> Path:
    """Where a rank with this log notes what it does."""
    return log_file.with_suffix(".now")


def own_status(activity: Activity) -> Status:
    """The status of this process."""
    memory = psutil.virtual_memory()
    return Status(
        os.getpid(),
        activity.command,
        activity.text,
        activity.waits,
        time.monotonic() - activity.since_s,
        psutil.Process().memory_info().rss,
        memory.available,
        memory.total,
        oom_kills(),
    )


def peak_memory() -> int:
    """Most bytes of memory that this process has had. What `getrusage` says counts what the process
    that started it had, too."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (most,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return most * 1024


def oom_kills() -> int | None:
    """Processes that the kernel has killed for lack of memory since it started."""
    try:
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:  # not Linux
        return None
    return None


def look_at(pid: int, log_file: Path) -> ProcessFacts:
    """What is left of a rank's process on this node."""
    try:
        state = str(psutil.Process(pid).status())
    except psutil.Error:
        state = None
    return ProcessFacts(state, oom_kills(), read_note(note_file(log_file)))
