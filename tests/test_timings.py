"""What the seconds of a command went into."""

from __future__ import annotations

import pytest

from tsarch import timings
from tsarch.clock import now_s
from tsarch.timings import Timings, process_started_s


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves, in seconds."""
    at = [100.0]
    monkeypatch.setattr(timings, "now_s", lambda: at[0])
    monkeypatch.setattr(timings.time, "perf_counter", lambda: at[0])
    return at


def test_a_phase_counts_without_those_inside_it_and_nothing_is_lost(clock):
    own = Timings(100.0)
    with own.during("outside"):
        clock[0] += 1.0
        for seconds in (2.0, 4.0):
            with own.during("inside"):
                clock[0] += seconds
        clock[0] += 8.0
    clock[0] += 16.0
    assert own.phases() == {"outside": 9.0, "inside": 6.0, "everything else": 16.0}
    assert own.as_json()["total_s"] == 31.0


def test_a_mark_is_that_of_the_first_time(clock):
    own = Timings(100.0)
    for at_s in (103.0, 105.0):
        own.mark("first_step", at_s)
    assert own.as_json()["first_step_s"] == 3.0


def test_the_first_command_began_with_its_process_and_the_next_begins_anew(clock):
    own = Timings(90.0)
    own.begin()
    own.mark("done")
    assert own.as_json()["done_s"] == 10.0
    clock[0] += 5.0
    own.begin()
    assert own.as_json() == {"total_s": 0.0, "phases_s": {"everything else": 0.0}}


def test_a_process_started_before_now():
    assert 0 < now_s() - process_started_s() < 1e6
