"""A cut through a run between two ticks: where it is written, what it cost, how to go on from it.

A tick is a beat of the schedule; in `overlapped` the student is a batch behind the teacher, and
what is on its way to it belongs to the cut. (No torch: the driver reads this.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tsarch.checkpoint.manifest import FileEntry


@dataclass(frozen=True)
class Cut:
    """What to write or read, and where."""

    url: str | None
    """Where the run's checkpoints are; None: it is kept in memory alone."""
    step: int
    """Number of the checkpoint: steps that the teacher has done."""
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of a cut in memory that is to be read: host → paths there of the slots that hold it, of all
    ranks."""
    slots: tuple[str, ...] = ()
    """Those of this host."""
    kept: tuple[int, ...] = ()
    """Steps of cuts in memory, two at most, that must stay while this one is taken: with them the
    loss of a host is made good."""

    def on(self, host: str) -> Cut:
        """The cut as ranks of a host read it."""
        return replace(self, places={}, slots=self.places.get(host, ()))


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
