"""What the load test found, as the table of docs/serving.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Found = Mapping[str, Any]


def markdown(run: str, found: Mapping[str, Found], threads: int) -> str:
    """A row for each thing that was tried, of the cases that there are."""
    lines = [
        f"Of the run {run}, on {threads} cores. Requests are sent 16 at a time, to three teachers "
        "and a student with `--limit queue_tokens=2000`:",
        "",
        "| case | found |",
        "|---|---|",
    ]
    for case, rows in _ROWS.items():
        if case in found:
            lines += [f"| {what} | {tell(found[case])} |" for what, tell in rows]
    return "\n".join(lines) + "\n"


def _answered(own: Found) -> str:
    statuses = {int(status): count for status, count in own["statuses"].items()}
    total = sum(statuses.values())
    others = [f", {count:,} × {status}" for status, count in statuses.items() if status != 200]
    return f"{statuses.get(200, 0):,} of {total:,} answered{''.join(others)}"


def _timed(own: Found) -> str:
    return (
        f"{_answered(own)}; {own['per_s']:,.0f} a second, {own['p50_ms']:,.0f} ms (median), "
        f"{own['p99_ms']:,.0f} (99th percentile)"
    )


def _swapped(own: Found) -> str:
    old, new = own["versions"].values()
    told = f"{old:,} by the old one and {new:,} by the new"
    return f"{_answered(own)}, {told}; the swap took {own['swap_s']:.1f} s"


def _hits(own: Found) -> str:
    read = f"{own['misses']:,.0f} contexts read, {own['hits']:,.0f} found: {own['hit_rate']:.1%}"
    return f"{_answered(own)}; {read}"


def _memory(own: Found) -> str:
    sizes = own["rss_mb"]
    return (
        f"{_answered(own)}; {own['per_s']:,.0f} a second; resident memory {sizes[1]} MB after a "
        f"quarter, {sizes[-1]} MB at the end"
    )


_ROWS: Mapping[str, list[tuple[str, Callable[[Found], str]]]] = {
    "limit": [
        ("below the limit", lambda own: _timed(own["below"])),
        (
            "above it, 100 at a time of 300 words",
            lambda own: f"{_answered(own['above'])}, all with `Retry-After`; nothing else",
        ),
    ],
    "hits": [("200 documents in random order, each asked for several times", _hits)],
    "swap": [("a version swapped under load", _swapped)],
    "replica": [
        ("a teacher’s replica killed under load", lambda own: _timed(own["teacher"])),
        ("the only student’s replica killed under load", lambda own: _timed(own["student"])),
    ],
    "memory": [("one request after the other to the embedded server", _memory)],
}
