"""The trace of a run: complete, readable, and its idle time is the summary's bubble."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import tiny_config, tracked
from tsarch.launch.training import run_training
from tsarch.records import TickReport, TraceEvent
from tsarch.telling.trace import TraceWriter, idle_share, read_middle, read_trace
from tsarch.telling.trackers import open_trackers
from tsarch.topology import Stage, Topology

CLOCK_TOLERANCE = 1e-5
"""Of the shares: a trace rounds times to a tenth of a microsecond."""


def event(start_s: float, end_s: float, wait_s: float = 0.0, name: str = "Forward") -> TraceEvent:
    return TraceEvent(name, "compute", 0, 0, start_s, end_s, wait_s)


def check_format(path: Path, topology: Topology) -> dict[str, list[dict[str, Any]]]:
    """Assert that every event has what the trace-event format wants of it; the events by `ph`."""
    rows: dict[str, list[dict[str, Any]]] = {"M": [], "X": [], "s": [], "f": []}
    for row in json.loads(path.read_text()):
        rows[row["ph"]].append(row)
    names = {(m["pid"], m.get("tid")): m["args"]["name"] for m in rows["M"] if "name" in m["args"]}
    replicas = (topology.replicas(Stage.TEACHER), topology.replicas(Stage.STUDENT))
    ranks = [(pid, tid) for pid in (0, 1) for tid in range(replicas[pid])]
    assert (names[0, None], names[1, None]) == ("teacher", "student")
    for rank, place in enumerate(ranks):
        assert names[place] == topology.label(rank)
    slices: dict[tuple[int, int], list[tuple[float, float]]] = {place: [] for place in ranks}
    for x in rows["X"]:
        assert x["ts"] >= 0.0 and x["dur"] >= 0.0 and x["name"] and x["cat"]  # noqa: PT018
        slices[x["pid"], x["tid"]].append((x["ts"], x["ts"] + x["dur"]))
    for own in slices.values():  # slices of a thread must not cross, but may hold one another
        own.sort(key=lambda s: (s[0], -s[1]))
        for (_, end), (start, inner_end) in itertools.pairwise(own):
            assert start >= end - 0.01 or inner_end <= end + 0.01
    starts, ends = Counter(s["id"] for s in rows["s"]), Counter(f["id"] for f in rows["f"])
    assert starts == ends
    assert set(starts.values()) <= {1}
    for flow in rows["s"] + rows["f"]:
        assert any(a <= flow["ts"] <= b for a, b in slices[flow["pid"], flow["tid"]])
    assert all(flow["bp"] == "e" for flow in rows["f"])
    return rows


def test_a_trace_that_was_not_closed_is_read_too(tmp_path):
    writer = TraceWriter(tmp_path / "trace.json", Topology.pair(1, 1))
    writer.add([TickReport("teacher", 0, 0, 0, events=[event(10.0, 11.0)])], 0)
    before = read_trace(tmp_path / "trace.json")
    writer.close()
    assert json.loads((tmp_path / "trace.json").read_text())
    assert read_trace(tmp_path / "trace.json") == before
    assert [(e["name"], e["ts"], e["dur"]) for e in before] == [("Forward", 0.0, 1e6)]


def test_idle_share_counts_gaps_and_waiting_but_nothing_between_epochs(tmp_path):
    writer = TraceWriter(tmp_path / "trace.json", Topology.pair(1, 1))
    # 4 s: the teacher works 3, the student 1 of an instruction of 2, of which it waits 1.
    writer.add([TickReport("teacher", 0, 0, 0, events=[event(0.0, 3.0)])], 0)
    writer.add([TickReport("student", 0, 0, 0, events=[event(2.0, 4.0, wait_s=1.0)])], 0)
    # Much later 4 s more, in which the teacher works 1 s.
    writer.add([TickReport("teacher", 0, 0, 0, events=[event(90.0, 91.0)])], 1)
    writer.add([TickReport("student", 0, 0, 0, events=[event(93.0, 94.0, wait_s=1.0)])], 1)
    writer.close()
    assert idle_share(read_trace(tmp_path / "trace.json")) == pytest.approx(1 - 5 / 16)


def test_the_middle_of_a_long_trace_is_in_order_of_ticks(tmp_path):
    writer = TraceWriter(tmp_path / "trace.json", Topology.pair(2, 1))
    for chunk in range(0, 200, 50):  # a chunk has all ticks of one rank, then those of the next
        reports = [
            TickReport(stage, replica, tick, tick, events=[event(tick, tick + 0.5)])
            for stage, replica in (("teacher", 0), ("teacher", 1), ("student", 0))
            for tick in range(chunk, chunk + 50)
        ]
        writer.add(reports, 0)
    writer.close()
    events, partial = read_middle(tmp_path / "trace.json", 20_000)
    assert partial
    assert 80 < len(events) < 200
    ticks = Counter(e["args"]["tick"] for e in events)
    assert sorted(ticks) == list(range(min(ticks), max(ticks) + 1))
    assert 60 < min(ticks) < 100 < max(ticks) < 140
    assert {n for tick, n in ticks.items() if min(ticks) < tick < max(ticks)} == {3}
    assert read_middle(tmp_path / "trace.json", 10**7) == (
        read_trace(tmp_path / "trace.json"),
        False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "messages"), [("overlapped", 1), ("joint", 2)])
def test_a_traced_run_tells_every_instruction_of_every_step(tmp_path, schedule, messages):
    """Two epochs with an evaluation before, between and after: only training is traced."""
    config = tiny_config(
        tmp_path,
        run={"folder": str(tmp_path / "run"), "trace": True},
        schedule={"name": schedule, "epochs": 2, "micro_batches": 2},
        topology={"runner": "local"},
    )
    summary = run_training(config)
    path = tmp_path / "run" / "trace.json"
    flows = check_format(path, Topology.pair(1, 1))["s"]
    assert len(flows) == summary["steps"] * 2 * messages
    everything = read_trace(path)
    events = [e for e in everything if e["cat"] != "wait"]
    for pid in (0, 1):
        places = [
            (e["args"]["step"], e["args"]["micro_batch"])
            for e in events
            if e["pid"] == pid and e["name"] == "Forward"
        ]
        assert places == [(step, m) for step in range(summary["steps"]) for m in range(2)]
    assert {e["args"]["epoch"] for e in events} == {0, 1}
    assert {e["name"] for e in events} >= {"SendHidden", "RecvHidden", "FinishTiedExchange"}
    assert summary["link_s_per_step"] > 0.0
    assert summary["tied_s_per_step"] > 0.0
    bubble = summary["bubble_fraction"]
    assert idle_share(everything) == pytest.approx(bubble, abs=CLOCK_TOLERANCE)


def test_traces_of_the_time_before_restarts_are_kept(tmp_path):
    for again in (False, True, True):
        with open_trackers(tracked(tmp_path, is_traced=True), print) as trackers:
            if again:
                trackers.rewind(0, 0)
            trackers.ticks([], 0)
    names = sorted(path.name for path in tmp_path.glob("trace*.json"))
    assert names == ["trace-1.json", "trace-2.json", "trace.json"]
