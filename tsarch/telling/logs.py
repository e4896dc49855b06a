"""The logs of a run's ranks as one, in the order in which lines were printed.

A file `rank-N.log` has what a rank printed and `rank-N.times` beside it when (`rank/log_times.py`);
`driver.log` has what the terminal showed. `clocks.json` says how far ranks' clocks are ahead of the
driver's, whose time is that of all lines.
"""

from __future__ import annotations

import heapq
import json
import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsarch.clock import now_s
from tsarch.errors import UserError
from tsarch.telling.intact import intact
from tsarch.telling.run_folder import write_atomically
from tsarch.telling.seats import read_seats

_CLOCKS = "clocks.json"
_END_S = 1e11
"""After which there are no moments: in the year 5138."""
_DRIVER = "driver"
_NAME = re.compile(r"(?:rank|spare)-\d+|driver")


@dataclass(frozen=True, order=True)
class LogLine:
    """A line."""

    time_s: float
    """Since 1970, on the driver's clock."""
    source: str
    """Such as `rank 3 (student)`."""
    text: str


def times_file(log: Path) -> Path:
    """Beside a log: when it grew."""
    return log.with_suffix(".times")


class DriverLog:
    """Keeps what the driver says."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / f"{_DRIVER}.log"

    def add(self, text: str) -> None:
        """One message, of a line or more; a full disk ends no run."""
        with suppress(OSError):
            with self._log.open("a", encoding="utf-8") as log:
                log.write(text + "\n")
                size = log.tell()
            with times_file(self._log).open("a", encoding="ascii") as times:
                times.write(f"{size} {now_s():.3f}\n")


def write_clocks(folder: Path, ahead_s: Mapping[int, float]) -> None:
    """Rank → seconds by which its clock is ahead of the driver's."""
    write_atomically(folder / _CLOCKS, json.dumps(ahead_s) + "\n")


def read_logs(
    folder: Path, ranks: Collection[int] = (), since_s: float = 0.0, pattern: str = ""
) -> Iterator[LogLine]:
    """The lines of all logs in `folder`, merged.

    Args:
        ranks: those alone; none: all, spare processes and the driver too.
        since_s: lines from then on.
        pattern: regular expression that a line has somewhere.

    Raises:
        UserError: there are no logs, what is known of them is damaged, or the pattern is none.
    """
    logs = [log for log in sorted(folder.glob("*.log")) if _NAME.fullmatch(log.stem)]
    if ranks:
        logs = [log for log in logs if log.stem in {f"rank-{rank}" for rank in ranks}]
    if not logs:
        what = "has no logs of these ranks." if ranks else "has no logs."
        hint = "With topology.runner: local only the driver has one."
        raise UserError.single(str(folder), what, hint)
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise UserError.single(f"--grep {pattern}", f"is no pattern: {error}.") from None
    ahead_s, stages = _clocks(folder), {seat.rank: seat.stage for seat in read_seats(folder)}
    merged = heapq.merge(*(_lines(log, ahead_s, stages) for log in logs))
    return (line for line in merged if line.time_s >= since_s and wanted.search(line.text))


def _clocks(folder: Path) -> dict[int, float]:
    file = folder / _CLOCKS
    with intact(file):
        found = json.loads(file.read_text(encoding="ascii")) if file.exists() else {}
        return {int(rank): _seconds(seconds) for rank, seconds in found.items()}


def _seconds(given: Any) -> float:
    """Of a clock, or between two.

    Raises:
        ValueError: it is no number, or no moment can be so late.
    """
    seconds = float(given)
    if not abs(seconds) < _END_S:
        raise ValueError
    return seconds


def _lines(log: Path, ahead_s: Mapping[int, float], stages: Mapping[int, str]) -> Iterator[LogLine]:
    """Of one log."""
    sizes, times = _times(log)
    kind, _, number = log.stem.partition("-")
    is_rank = kind == "rank"
    stage = stages.get(int(number)) if is_rank else None
    source = f"{kind} {number}".strip() + (f" ({stage})" if stage else "")
    offset_s = ahead_s.get(int(number), 0.0) if is_rank else 0.0
    last_s = log.stat().st_mtime
    place = 0
    with log.open("rb") as file:
        for line in file:
            known = bisect_right(sizes, place)
            time_s = times[known] - offset_s if known < len(times) else last_s
            yield LogLine(time_s, source, line.decode("utf-8", "replace").rstrip("\r\n"))
            place += len(line)


def _times(log: Path) -> tuple[Sequence[int], Sequence[float]]:
    """Sizes in rising order, and when the log had them; a torn last line is left out."""
    file = times_file(log)
    with intact(file):
        lines = file.read_text(encoding="ascii").splitlines(keepends=True) if file.exists() else []
        rows = [line.split() for line in lines if line.endswith("\n")]
        return [int(size) for size, _ in rows], [_seconds(seconds) for _, seconds in rows]
