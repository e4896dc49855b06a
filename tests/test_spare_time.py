"""What a spare process does while ranks train takes nothing from them."""

import os
import threading

import pytest

from tsarch.rank.spare_time import in_spare_time


def policy() -> int:
    return os.sched_getscheduler(threading.get_native_id())


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="a system without such threads")
def test_work_gives_way_and_what_comes_after_it_does_not():
    before = policy()
    assert in_spare_time(policy) == os.SCHED_IDLE
    assert policy() == before != os.SCHED_IDLE


def test_a_failure_is_raised_where_it_was_asked_for():
    with pytest.raises(ZeroDivisionError):
        in_spare_time(lambda: 1 // 0)
