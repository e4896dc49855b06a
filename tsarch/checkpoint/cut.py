"""A cut through a run between two ticks: where it is written, what it cost, how to go on from it.

A tick is a beat of the schedule; in `overlapped` the student is a batch behind the teacher, and
what is on its way to it belongs to the cut. (No torch: the driver reads this.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tsarch.checkpoint.manifest import FileEntry


@dataclass(frozen=True)
class Cut:
    """What to write or read, and where."""

    url: str
    """Where the run's checkpoints are."""
    step: int
    """Number of the checkpoint: steps that the teacher has done."""


@dataclass(frozen=True)
class Resume:
    """Where an epoch goes on."""

    cut: Cut
    tick: int
    """The next tick."""
    same_ranks: bool
    """Whether the cut was taken by ranks like these: then each goes on with its random numbers."""


@dataclass(frozen=True)
class Stall:
    """What a cut cost a rank."""

    stall_s: float
    """Seconds in which the rank did not train."""
    nbytes: int
    """Bytes that it copied."""


@dataclass(frozen=True)
class Written:
    """What a rank has written."""

    files: dict[str, FileEntry] = field(default_factory=dict)
    write_s: float = 0.0
    error: str | None = None
    """Why a file couldn't be written."""
