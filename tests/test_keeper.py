"""What nodes hold of their ranks' cuts and of each other's, and a head that is gone; no Ray."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import torch

from tsarch.checkpoint.host_copies import HostCopies, read_slot
from tsarch.checkpoint.slots import newest_common
from tsarch.cluster import head_watch
from tsarch.cluster.head_watch import HeadWatch
from tsarch.cluster.keeper import Keeper


def take(copies: HostCopies, step: int, value: float) -> None:
    copies.begin(step)
    copies.into("f")("x", torch.full((3,), value))
    copies.finish()


def test_a_node_holds_the_cuts_of_its_ranks_and_copies_of_another_nodes():
    near, far = Keeper(), Keeper()
    slots = near.make([0, 1])
    assert near.make([1]) == {1: slots[1]}, "a rank in a new process finds what was there"
    ranks = [HostCopies(slots[rank], 2) for rank in (0, 1)]
    (other,) = (HostCopies(own, 2) for own in far.make([2]).values())
    for step in (5, 10):
        for rank, copies in enumerate((*ranks, other)):
            take(copies, step, 10.0 * rank + step)
        far.copy(step, [0, 1], near.read(0, step), near.read(1, step))
    take(ranks[0], 15, 15.0)

    # The near node is lost: the far one has the last cut that all ranks have taken.
    cuts = far.cuts()
    step, paths = newest_common([cuts[rank] for rank in range(3)])
    assert step == 10
    found = [read_slot(path, step)["f"]["x"].tolist() for path in paths]
    assert found == [[10.0] * 3, [20.0] * 3, [30.0] * 3]
    third = Keeper()
    third.copy(10, [0], far.read(0, 10))  # of a copy
    assert read_slot(third.cuts()[0][10], 10)["f"]["x"].tolist() == [10.0] * 3
    far.clear()
    assert not any(far.cuts().values())


def wait_until(condition: Callable[[], bool]) -> None:
    given_up_s = time.monotonic() + 30
    while not condition() and time.monotonic() < given_up_s:
        time.sleep(0.01)
    assert condition()


def test_a_head_that_takes_no_connection_is_lost_until_it_takes_one_again(monkeypatch):
    monkeypatch.setattr(head_watch, "_EVERY_S", 0.02)
    server = socket.create_server(("127.0.0.1", 0))
    host, port = server.getsockname()
    watch = HeadWatch(f"{host}:{port}", silence_s=60.0)
    try:
        server.accept()[0].close()
        assert watch.lost_for_s == 0
        server.close()
        wait_until(lambda: watch.lost_for_s > 0.05)
        with socket.create_server((host, port), reuse_port=False):
            wait_until(lambda: watch.lost_for_s == 0)
    finally:
        watch.stop()
