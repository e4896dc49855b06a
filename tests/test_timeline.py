"""The timeline's stretch, lanes and blocks, from made-up traces."""

from __future__ import annotations

from typing import Any

import pytest

from tsarch.telling.timeline import MAX_BLOCKS, MAX_LANES, Block, make_timeline
from tsarch.topology import Stage, Topology


def event(
    pid: int, tid: int, tick: int, start_ms: float, ms: float, name: str = "Forward", **args: Any
) -> dict[str, Any]:
    kinds = {"Forward": "compute", "Backward": "compute", "wait": "wait", "SendHidden": "link"}
    arguments = {"epoch": 0, "tick": tick, **args}
    place = {"pid": pid, "tid": tid, "ts": start_ms * 1e3, "dur": ms * 1e3}
    return {"ph": "X", "name": name, "cat": kinds[name], **place, "args": arguments}


def beat(tick: int, start_ms: float, teacher_ms: float, topology: Topology) -> list[dict[str, Any]]:
    """A tick in which teachers work `teacher_ms` and students 10 ms, half of which they wait."""
    teachers = [
        event(0, r, tick, start_ms, teacher_ms, step=tick, micro_batch=0)
        for r in range(topology.replicas(Stage.TEACHER))
    ]
    students = [
        e
        for r in range(topology.replicas(Stage.STUDENT))
        for e in (
            event(1, r, tick, start_ms, 10.0, "Backward", step=tick - 1, micro_batch=0),
            event(1, r, tick, start_ms, 5.0, "wait"),
        )
    ]
    return teachers + students


def test_the_stretch_is_the_median_one_of_the_middle():
    topology = Topology.pair(1, 1)
    lengths = [90, 90, 90, 20, 30, 25, 20, 95, 20, 20, 20, 20]  # of a tick, in ms
    events, start_ms = [], 0.0
    for tick, length_ms in enumerate(lengths):
        events += beat(tick, start_ms, length_ms, topology)
        start_ms += length_ms
    timeline = make_timeline(events, topology, single_step=True)
    assert timeline.duration_ms == pytest.approx(25.0)
    assert timeline.steps == (4, 5)  # of student and teacher in tick 5
    assert timeline.lanes == ("teacher 0", "student 0")
    assert timeline.blocks == (
        Block(0, "forward", 0.0, 25.0, "5"),
        Block(1, "backward", 0.0, 10.0, "4"),
        Block(1, "wait", 0.0, 5.0, ""),
    )
    assert timeline.idle_share == pytest.approx(1 - (25 + 5) / 50)
    assert (timeline.num_hidden_lanes, timeline.is_cut, timeline.numbers) == (0, False, "step")


def test_several_ticks_of_one_epoch_and_neighbours_clipped():
    topology = Topology.pair(1, 1)
    events = [e for tick in range(8) for e in beat(tick, 20.0 * tick, 20.0, topology)]
    # An instruction of tick 1 that reaches into the stretch on the student's lane.
    events.append(event(1, 0, 1, 35.0, 150.0, "SendHidden", step=1, micro_batch=0))
    timeline = make_timeline(events, topology, single_step=False)
    assert timeline.duration_ms >= 80.0
    link = next(b for b in timeline.blocks if b.kind == "link")
    assert (link.start_ms, link.end_ms) == (0.0, timeline.duration_ms)
    assert all(0.0 <= b.start_ms <= b.end_ms <= timeline.duration_ms for b in timeline.blocks)


def test_ticks_of_two_epochs_never_make_a_stretch():
    topology = Topology.pair(1, 1)
    events = beat(0, 0.0, 10.0, topology) + beat(1, 10.0, 10.0, topology)
    later = beat(1, 5000.0, 10.0, topology) + beat(2, 5010.0, 10.0, topology)
    events += [{**e, "args": {**e["args"], "epoch": 1}} for e in later]
    assert make_timeline(events, topology, single_step=False).duration_ms <= 20.0


@pytest.mark.parametrize(
    ("teachers", "students", "shown"),
    [(16, 16, (16, 16)), (48, 16, (24, 8)), (200, 1, (31, 1)), (1, 200, (1, 31))],
)
def test_lanes_are_capped_in_proportion(teachers, students, shown):
    topology = Topology.pair(teachers, students)
    timeline = make_timeline(beat(0, 0.0, 10.0, topology), topology, single_step=True)
    num_teachers = sum(name.startswith("teacher") for name in timeline.lanes)
    assert (num_teachers, len(timeline.lanes) - num_teachers) == shown
    assert timeline.num_teacher_lanes == num_teachers
    assert len(timeline.lanes) == min(MAX_LANES, topology.num_ranks)
    assert timeline.num_hidden_lanes == topology.num_ranks - len(timeline.lanes)
    idle = 1 - (10 * teachers + 5 * students) / (10 * topology.num_ranks)
    assert timeline.idle_share == pytest.approx(idle)


def test_blocks_are_capped_in_time():
    topology = Topology.pair(1, 1)
    many = [
        event(pid, 0, 0, 2.0 * i, 1.0, step=0, micro_batch=i)
        for pid in (0, 1)
        for i in range(MAX_BLOCKS)
    ]
    timeline = make_timeline(many, topology, single_step=True)
    assert timeline.is_cut
    assert len(timeline.blocks) == MAX_BLOCKS
    assert timeline.duration_ms == pytest.approx(MAX_BLOCKS)
    assert timeline.numbers == "micro-batch"
    assert timeline.blocks[-1].label == str(MAX_BLOCKS // 2 - 1)
    assert timeline.idle_share == pytest.approx(0.5, abs=0.01)
