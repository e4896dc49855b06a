"""Which rank hangs, from what all ranks say of themselves. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tsarch.rank.status import Status


@dataclass(frozen=True)
class Finding:
    """What is wrong with some ranks."""

    kind: Literal["node lost", "frozen", "hang"]
    ranks: tuple[int, ...]
    """Whose fault it is, as far as can be seen."""
    seconds: float
    """For so long already."""


def find_hang(statuses: Mapping[int, Status], limit_s: float) -> Finding | None:
    """A hang: no rank that should make progress has made any for `limit_s`.

    Those that wait for others are not to blame, unless all of them wait. Of the rest those that
    have stood still longest are.
    """
    busy = {rank: status for rank, status in statuses.items() if status.is_busy}
    if not busy or min(status.still_s for status in busy.values()) <= limit_s:
        return None
    suspects = {rank: s for rank, s in busy.items() if not s.waits} or busy
    longest = max(s.still_s for s in suspects.values())
    if len(suspects) < len(busy):
        # The first that stood still made the others do so.
        suspects = {rank: s for rank, s in suspects.items() if s.still_s > longest - 1.0}
    return Finding("hang", tuple(sorted(suspects)), longest)
