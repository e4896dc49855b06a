"""The trace of a run: every instruction of every rank, for Perfetto and for the timeline.

Format: Chrome's trace events, https://perfetto.dev/docs/getting-started/other-formats. A process
per stage, a thread per replica; times in microseconds since the first event. A complete event
(`ph` X) is an instruction, or, inside it, its waiting for other ranks (`cat` wait). Flow events
(`s`, `f`) lead from every send to the receive that takes its message.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import IO, Any

from tsarch.records import TickReport, TraceEvent
from tsarch.topology import Topology

Event = dict[str, Any]
_encode = json.JSONEncoder(separators=(",", ":")).encode
_MESSAGES = {"SendHidden": "hidden states", "SendGrad": "gradient"}
_RECEIVED = {"RecvHidden": "hidden states", "RecvGrad": "gradient"}


class TraceWriter:
    """Writes `trace.json` as the reports come in, so that a trace of any length needs no memory.

    A file that was not closed (a crash) still opens in Perfetto.
    """

    def __init__(self, path: Path, topology: Topology) -> None:
        self._topology = topology
        self._file: IO[str] = path.open("w", encoding="utf-8")
        self._start_s: float | None = None
        self._flows = _Flows()
        self._file.write("[\n")
        self._file.write(",\n".join(map(_encode, _names(topology))))

    def add(self, reports: Iterable[TickReport], epoch: int) -> None:
        """Write the events of some reports of one epoch, tick by tick."""
        traced = sorted((r for r in reports if r.events), key=lambda report: report.tick)
        if self._start_s is None and traced:
            self._start_s = min(report.events[0].start_s for report in traced)
        for report in traced:
            for row in self._rows(report, epoch):
                self._file.write(",\n" + _encode(row))
        self._file.flush()

    def close(self) -> None:
        """End the file."""
        self._file.write("\n]\n")
        self._file.close()

    def _rows(self, report: TickReport, epoch: int) -> Iterator[Event]:
        """Each instruction; inside it, first, its waiting for other ranks; and its messages."""
        assert self._start_s is not None
        stage = self._topology.named(report.stage)
        own_rank = self._topology.rank(stage, report.replica)
        place = {"pid": self._topology.stages.index(stage), "tid": report.replica}
        beat = {"epoch": epoch, "tick": report.tick}
        for event in report.events:
            # Both ends are rounded, not the duration, so that neighbours never overlap.
            start_us = round((event.start_s - self._start_s) * 1e6, 1)
            duration_us = round(round((event.end_s - self._start_s) * 1e6, 1) - start_us, 1)
            wait_us = min(round(event.wait_s * 1e6, 1), duration_us)
            row: Event = {"ph": "X", **place, "ts": start_us}
            yield {
                **row,
                "name": event.name,
                "cat": event.kind,
                "dur": duration_us,
                "args": {**beat, **_numbers(event)},
            }
            if wait_us > 0:
                yield {**row, "name": "wait", "cat": "wait", "dur": wait_us, "args": beat}
            # In the middle of the work: inside the instruction's slice, not in its waiting's.
            middle_us = round(start_us + (wait_us + duration_us) / 2, 1)
            for flow in self._flows.of(event, own_rank) if event.peers else ():
                yield {**flow, **place, "ts": middle_us}


def _numbers(event: TraceEvent) -> dict[str, int]:
    if event.step is None:
        return {}
    if event.micro_batch is None:
        return {"step": event.step}
    return {"step": event.step, "micro_batch": event.micro_batch}


class _Flows:
    """Numbers the messages of the link; both ends of one find the same number."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._open: dict[tuple[Any, ...], int] = {}

    def of(self, event: TraceEvent, own_rank: int) -> Iterator[Event]:
        """A flow event for every message of a send or receive of rank `own_rank`."""
        for peer in event.peers:
            if event.name in _MESSAGES:
                name, ends, phase = _MESSAGES[event.name], (own_rank, peer), {"ph": "s"}
            else:
                name, ends, phase = _RECEIVED[event.name], (peer, own_rank), {"ph": "f", "bp": "e"}
            key = (name, event.step, event.micro_batch, *ends)
            number = self._open.pop(key, None)
            if number is None:
                number = self._open[key] = next(self._numbers)
            yield {**phase, "id": number, "name": name, "cat": "link"}


def read_trace(path: Path) -> list[Event]:
    """The complete events (`ph` X) of a `trace.json`."""
    text = path.read_text(encoding="utf-8").rstrip()
    rows = json.loads(text if text.endswith("]") else text + "]")
    return [row for row in rows if row["ph"] == "X"]


def read_middle(path: Path, max_bytes: int) -> tuple[list[Event], bool]:
    """The complete events in the middle `max_bytes` of a `trace.json`, and whether that is not
    all of it. Ticks at both ends are then incomplete."""
    size = path.stat().st_size
    if size <= max_bytes:
        return read_trace(path), False
    with path.open("rb") as file:
        file.seek((size - max_bytes) // 2)
        lines = file.read(max_bytes).split(b"\n")[1:-1]
    rows = [json.loads(line.rstrip(b",")) for line in lines]
    return [row for row in rows if row["ph"] == "X"], True


def idle_share(events: Sequence[Event]) -> float:
    """Share of the time in which the ranks don't work, averaged over them: in gaps between
    instructions or waiting for others.

    The time is that from the first to the last event of each epoch; what lies between epochs
    (validation) does not count. On a whole trace it is the summary's `bubble_fraction`.
    """
    ranks = {(e["pid"], e["tid"]) for e in events}
    bounds: dict[int, tuple[float, float]] = {}
    worked_us = 0.0
    for event in events:
        if event["cat"] == "wait":
            worked_us -= event["dur"]
            continue
        worked_us += event["dur"]
        start_us, end_us = event["ts"], event["ts"] + event["dur"]
        first_us, last_us = bounds.get(event["args"]["epoch"], (start_us, end_us))
        bounds[event["args"]["epoch"]] = (min(first_us, start_us), max(last_us, end_us))
    available_us = sum(end_us - start_us for start_us, end_us in bounds.values()) * len(ranks)
    return float(1.0 - worked_us / available_us)


def _names(topology: Topology) -> Iterator[Event]:
    for pid, stage in enumerate(topology.stages):
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": stage.value}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}
        for replica in range(topology.replicas(stage)):
            label = topology.label(topology.rank(stage, replica))
            name = {"ph": "M", "name": "thread_name", "pid": pid, "tid": replica}
            yield {**name, "args": {"name": label}}
