"""Where a step's time went: tables of a profiled run, for the terminal and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tsarch.telling.pages import show_seconds
from tsarch.telling.run_folder import write_atomically

_FILE = "profile.json"
_GIGA = 1e9


@dataclass(frozen=True)
class SpentRow:
    """A part of a step, as it is shown."""

    name: str
    seconds: str
    share: str
    rate: str
    """Products: GFLOP/s."""
    of_peak: str


@dataclass(frozen=True)
class RankTable:
    """Of a rank."""

    title: str
    rows: tuple[SpentRow, ...]
    """Its instructions, and the time between them."""
    operators: tuple[SpentRow, ...]


def read_profiles(folder: Path) -> list[dict[str, Any]]:
    """What `profile.json` has of each rank; none if the run was not profiled."""
    file = folder / _FILE
    found: list[dict[str, Any]] = []
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
    return found


def add_peaks(folder: Path, peaks: Sequence[float | None]) -> None:
    """Add to each rank's profile what it could have computed at most (FLOP/s)."""
    profiles = read_profiles(folder)
    found = [{**own, "peak_flops_s": peak} for own, peak in zip(profiles, peaks, strict=True)]
    write_atomically(folder / _FILE, json.dumps(found, indent=1) + "\n")


def rank_table(profile: Mapping[str, Any]) -> RankTable:
    """Of one rank's profile, with its peak."""
    ticks, total_s, peak = profile["num_ticks"], profile["seconds"], profile["peak_flops_s"]
    inside_s = sum(own["seconds"] for own in profile["instructions"])
    rest = {"name": "between instructions", "seconds": max(total_s - inside_s, 0.0), "flops": 0.0}
    flops = sum(own["flops"] for own in profile["instructions"])
    whole = {"name": "all", "seconds": total_s, "flops": flops}
    title = f"rank {profile['rank']}: {ticks} steps of {show_seconds(total_s / ticks)}"
    if peak:
        title += f"; peak {peak / _GIGA:,.0f} GFLOP/s on {profile['device']}"
    return RankTable(
        title,
        tuple(_row(own, profile) for own in (*profile["instructions"], rest, whole)),
        tuple(_row(own, profile) for own in profile["operators"]),
    )


def _row(own: Mapping[str, Any], profile: Mapping[str, Any]) -> SpentRow:
    seconds, flops, peak = own["seconds"], own["flops"], profile["peak_flops_s"]
    rate = flops / seconds if seconds > 0 else 0.0
    return SpentRow(
        own["name"],
        show_seconds(seconds / profile["num_ticks"]),
        f"{100 * seconds / profile['seconds']:.1f} %",
        f"{rate / _GIGA:,.1f}" if flops else "",
        f"{100 * rate / peak:.0f} %" if flops and peak else "",
    )


def print_profiles(console: Console, profiles: Sequence[Mapping[str, Any]]) -> None:
    """A table a rank."""
    for profile in profiles:
        found = rank_table(profile)
        table = Table(title=Text(found.title), title_justify="left")
        table.add_column("a step's time")
        for column in ("", "share", "GFLOP/s", "of peak"):
            table.add_column(column, justify="right")
        for group in (found.rows, found.operators):
            for row in group:
                table.add_row(row.name, row.seconds, row.share, row.rate, row.of_peak)
            table.add_section()
        console.print(table)
