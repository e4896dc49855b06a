"""Which rank sits where: a picture for the terminal, and `placement.json` for the report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from tsarch.telling.intact import intact
from tsarch.telling.run_folder import write_atomically

_FILE = "placement.json"
_MOST_LINES = 16


@dataclass(frozen=True)
class Seat:
    """Where a rank is."""

    rank: int
    stage: str
    node: str
    """Address of its host."""
    gpu_ids: tuple[str, ...] = ()
    """Numbers of its GPUs there; none: it computes on CPUs."""
    niceness: int = 0
    """By which its host ranks it behind other processes."""
    group: int | None = None
    """Number of the ranks that share contexts with it; None: it has its own."""


@dataclass(frozen=True)
class NodeSeats:
    """The ranks of a host."""

    node: str
    stages: dict[str, tuple[Seat, ...]]


def by_node(seats: Sequence[Seat]) -> list[NodeSeats]:
    """Hosts in the order of their first ranks, each with the ranks of all stages."""
    stages = dict.fromkeys(seat.stage for seat in seats)
    found: dict[str, dict[str, list[Seat]]] = {}
    for seat in seats:
        found.setdefault(seat.node, {stage: [] for stage in stages})[seat.stage].append(seat)
    return [
        NodeSeats(node, {stage: tuple(own) for stage, own in by_stage.items()})
        for node, by_stage in found.items()
    ]


def picture(seats: Sequence[Seat]) -> list[str]:
    """Lines: a row for each of the first hosts, a column for each stage, with ranks and GPUs."""
    hosts = by_node(seats)
    rows = [["host", *hosts[0].stages]] if hosts else []
    rows += [[host.node, *map(cell, host.stages.values())] for host in hosts[:_MOST_LINES]]
    if len(hosts) > _MOST_LINES:
        rows.append([f"… and {len(hosts) - _MOST_LINES} more", *("" for _ in hosts[0].stages)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def cell(seats: Sequence[Seat]) -> str:
    """Such as `ranks 0–3 on GPUs 0–3`, or `ranks 0–1 · 2–3 on …` of two groups that share contexts;
    a dash for none."""
    if not seats:
        return "–"
    groups = groupby(seats, key=lambda seat: seat.group)
    ranks = " · ".join(spans(seat.rank for seat in own) for _, own in groups)
    text = f"{'rank' if len(seats) == 1 else 'ranks'} {ranks}"
    gpus = [int(gpu) for seat in seats for gpu in seat.gpu_ids if gpu.isdigit()]
    return f"{text} on GPU{'s' * (len(gpus) > 1)} {spans(gpus)}" if gpus else text


def split_groups(seats: Sequence[Seat]) -> list[int]:
    """Ranks that share contexts with ranks on other hosts."""
    hosts: dict[int | None, set[str]] = {}
    for seat in seats:
        hosts.setdefault(seat.group, set()).add(seat.node)
    return [own.rank for own in seats if own.group is not None and len(hosts[own.group]) > 1]


def spans(numbers: Iterable[int]) -> str:
    """Numbers with neighbours as spans: `0–3, 6`."""
    runs = groupby(enumerate(sorted(numbers)), key=lambda own: own[1] - own[0])
    groups = [[number for _, number in run] for _, run in runs]
    return ", ".join(f"{own[0]}–{own[-1]}" if len(own) > 1 else str(own[0]) for own in groups)


def write_seats(folder: Path, seats: Sequence[Seat]) -> None:
    """`placement.json`, in the folder of the ranks' logs."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(seat) for seat in seats], indent=1)
    write_atomically(folder / _FILE, text + "\n")


def read_seats(folder: Path) -> list[Seat]:
    """What `write_seats` wrote last; none if it did not.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / _FILE
    if not file.exists():
        return []
    with intact(file):
        rows = json.loads(file.read_text(encoding="utf-8"))
        return [Seat(**{**row, "gpu_ids": tuple(row["gpu_ids"])}) for row in rows]
