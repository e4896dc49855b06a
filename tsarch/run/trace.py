"""The trace of a run: every instruction of every rank, for Perfetto and for the timeline.

Format: Chrome's trace events, https://perfetto.dev/docs/getting-started/other-formats. A process
per stage, a thread per replica; times in microseconds since the first event.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tsarch.records import TickReport, TraceEvent
from tsarch.topology import STAGES, Topology


class TraceWriter:
    """Writes `trace.json` as the reports come in, so that a trace of any length needs no memory.

    A file that was not closed (a crash) still opens in Perfetto.
    """

    def __init__(self, path: Path, topology: Topology) -> None:
        self._file: IO[str] = path.open("w", encoding="utf-8")
        self._start_s: float | None = None
        self._file.write("[\n")
        self._file.write(",\n".join(json.dumps(e) for e in _names(topology)))

    def add(self, reports: Iterable[TickReport]) -> None:
        """Write the events of some reports."""
        for report in reports:
            for event in report.events:
                if self._start_s is None:
                    self._start_s = report.events[0].start_s
                for row in _rows(report, event, self._start_s):
                    self._file.write(",\n" + json.dumps(row))
        self._file.flush()

    def close(self) -> None:
        """End the file."""
        self._file.write("\n]\n")
        self._file.close()


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The complete events (`ph` X) of a `trace.json`."""
    text = path.read_text(encoding="utf-8").rstrip()
    rows = json.loads(text if text.endswith("]") else text + "]")
    return [row for row in rows if row["ph"] == "X"]


def idle_share(events: Sequence[dict[str, Any]]) -> float:
    """Share of the time from first to last event in which the ranks don't work, averaged.

    On a whole trace of one span of training it is `bubble_fraction`.
    """
    work = [e for e in events if e["cat"] != "wait"]
    waited_us = sum(e["dur"] for e in events if e["cat"] == "wait")
    ranks = {(e["pid"], e["tid"]) for e in work}
    start_us = min(e["ts"] for e in work)
    end_us = max(e["ts"] + e["dur"] for e in work)
    available_us = (end_us - start_us) * len(ranks)
    return float(1.0 - (sum(e["dur"] for e in work) - waited_us) / available_us)


def _names(topology: Topology) -> Iterator[dict[str, Any]]:
    for pid, stage in enumerate(STAGES):
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": stage.value}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}
        for replica in range(topology.replicas(stage)):
            label = topology.label(topology.rank(stage, replica))
            name = {"ph": "M", "name": "thread_name", "pid": pid, "tid": replica}
            yield {**name, "args": {"name": label}}


def _rows(report: TickReport, event: TraceEvent, start_s: float) -> Iterator[dict[str, Any]]:
    """The instruction, and inside it, first, its waiting for other ranks."""
    place = {"pid": [s.value for s in STAGES].index(report.stage), "tid": report.replica}
    common = {"ph": "X", **place, "ts": round((event.start_s - start_s) * 1e6, 1)}
    numbers = {"tick": report.tick, "step": event.step, "micro_batch": event.micro_batch}
    arguments = {name: value for name, value in numbers.items() if value is not None}
    duration_us = round((event.end_s - event.start_s) * 1e6, 1)
    yield {**common, "name": event.name, "cat": event.kind, "dur": duration_us, "args": arguments}
    if event.wait_s > 0:
        yield {**common, "name": "wait", "cat": "wait", "dur": round(event.wait_s * 1e6, 1)}
