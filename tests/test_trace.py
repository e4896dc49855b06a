"""The trace of a run: complete, readable, and its idle time is the summary's bubble."""

from __future__ import annotations

import json

import pytest

from launch.training import run_training
from tests.helpers import tiny_config
from tsarch.records import TickReport, TraceEvent
from tsarch.run.trace import TraceWriter, idle_share, read_trace
from tsarch.topology import Topology


def event(start_s: float, end_s: float, wait_s: float = 0.0, name: str = "Forward") -> TraceEvent:
    return TraceEvent(name, "compute", 0, 0, start_s, end_s, wait_s)


def test_a_trace_that_was_not_closed_is_read_too(tmp_path):
    writer = TraceWriter(tmp_path / "trace.json", Topology(1, 1))
    writer.add([TickReport("teacher", 0, 0, 0, events=[event(10.0, 11.0)])])
    before = read_trace(tmp_path / "trace.json")
    writer.close()
    assert json.loads((tmp_path / "trace.json").read_text())
    assert read_trace(tmp_path / "trace.json") == before
    assert [(e["name"], e["ts"], e["dur"]) for e in before] == [("Forward", 0.0, 1e6)]


def test_idle_share_counts_gaps_and_waiting(tmp_path):
    writer = TraceWriter(tmp_path / "trace.json", Topology(1, 1))
    # 4 s: the teacher works 3, the student 1 of an instruction of 2, of which it waits 1.
    writer.add([TickReport("teacher", 0, 0, 0, events=[event(0.0, 3.0)])])
    writer.add([TickReport("student", 0, 0, 0, events=[event(2.0, 4.0, wait_s=1.0)])])
    writer.close()
    assert idle_share(read_trace(tmp_path / "trace.json")) == pytest.approx(1 - 4 / 8)


def test_a_traced_run_tells_every_instruction_of_every_step(tmp_path):
    config = tiny_config(
        tmp_path,
        run={"folder": str(tmp_path / "run"), "trace": True},
        schedule={"max_steps": 4, "micro_batches": 2},
        topology={"runner": "local"},
        evaluation={"before": False},
    )
    summary = run_training(config)
    events = [e for e in read_trace(tmp_path / "run" / "trace.json") if e["cat"] != "wait"]
    for pid in (0, 1):
        places = [
            (e["args"]["step"], e["args"]["micro_batch"])
            for e in events
            if e["pid"] == pid and e["name"] == "Forward"
        ]
        assert places == [(step, m) for step in range(4) for m in range(2)]
    assert {e["name"] for e in events} >= {"SendHidden", "RecvHidden", "FinishTiedExchange"}
    assert summary["link_s_per_step"] > 0.0
