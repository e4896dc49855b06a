"""What nodes hold of their ranks' cuts and of each other's, and a head that is gone; no Ray."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayError

from tsarch.checkpoint.host_copies import HostCopies, read_slot
from tsarch.checkpoint.slots import newest_common
from tsarch.cluster import head_watch
from tsarch.cluster import keeper as keeping
from tsarch.cluster.head_watch import HeadWatch
from tsarch.cluster.keeper import Flow, Keeper, Keepers
from tsarch.cluster.watch import Node


def take(copies: HostCopies, step: int, value: float) -> None:
    copies.begin(step)
    copies.into("f")("x", torch.full((3,), value))
    copies.finish()


class Actor:
    """A keeper that does at once what it is asked; what came of it is asked for later."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> partial[Any]:
            try:
                return partial(lambda found: found, getattr(self.keeper, name)(*arguments))
            except LookupError as error:
                return partial(fail, RayError(str(error)))

        return SimpleNamespace(remote=remote)


def fail(error: Exception) -> None:
    raise error


class FakeRay:
    """What keepers need of Ray; copies arrive when `has_arrived` says so."""

    def __init__(self) -> None:
        self.has_arrived = True

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: Actor(kind())))

    def get(self, asked: Any, timeout: float | None = None) -> Any:
        return [own() for own in asked] if isinstance(asked, list) else asked()

    def wait(self, asked: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return (asked, []) if self.has_arrived else ([], asked)


@pytest.fixture
def fake_ray(monkeypatch) -> FakeRay:
    own = FakeRay()
    monkeypatch.setattr(keeping, "ray", own)
    return own


ALL = Flow(2**20, 1.0)


def test_a_node_holds_the_cuts_of_its_ranks_and_copies_of_another_nodes(fake_ray):
    near, far = Keeper(), Keeper()
    slots = near.make([0, 1])
    assert near.make([1]) == {1: slots[1]}, "a rank in a new process finds what was there"
    ranks = [HostCopies(slots[rank], 2) for rank in (0, 1)]
    (other,) = (HostCopies(own, 2) for own in far.make([2]).values())
    for step in (5, 10):
        for rank, copies in enumerate((*ranks, other)):
            take(copies, step, 10.0 * rank + step)
        far.copy(step, {0: Actor(near), 1: Actor(near)}, ALL)
    take(ranks[0], 15, 15.0)

    # The near node is lost: the far one has the last cut that all ranks have taken.
    cuts = far.cuts()
    step, paths = newest_common([cuts[rank] for rank in range(3)])
    assert step == 10
    found = [read_slot(path, step)["f"]["x"].tolist() for path in paths]
    assert found == [[10.0] * 3, [20.0] * 3, [30.0] * 3]
    third = Keeper()
    third.copy(10, {0: Actor(far)}, ALL)  # of a copy
    assert read_slot(third.cuts()[0][10], 10)["f"]["x"].tolist() == [10.0] * 3
    far.forget_after(5)
    assert [set(own) for own in far.cuts().values()] == [{5}] * 3
    far.clear()
    assert not any(far.cuts().values())


def test_a_copy_comes_in_parts_with_pauses_and_is_whole_at_the_end_alone(fake_ray, monkeypatch):
    near, far, pauses = Keeper(), Keeper(), []
    (slots,) = near.make([0]).values()
    copies = HostCopies(slots, 2)
    take(copies, 5, 5.0)

    class Ended:
        def is_set(self) -> bool:
            return False

        def wait(self, pause_s: float) -> None:
            assert not any(cuts for cuts in far._copies[0].cuts()), "a part is no cut"
            pauses.append(pause_s)

    monkeypatch.setattr(far, "_given_up", Ended())
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(keeping.time, "monotonic", lambda: next(clock))
    size = len(near.read(0, 5, 0, 2**20))
    parts = -(-size // 1000)
    assert far.copy(5, {0: Actor(near)}, Flow(1000, 0.05)) == parts
    assert pauses == [19.0] * (parts - 1), "a second of twenty"
    monkeypatch.undo()
    assert read_slot(far._copies[0].cuts()[5], 5)["f"]["x"].tolist() == [5.0] * 3


def test_a_copy_that_is_given_up_leaves_what_is_there_as_it_is(fake_ray):
    near, far = Keeper(), Keeper()
    (slots,) = near.make([0]).values()
    copies = HostCopies(slots, 2)
    take(copies, 5, 5.0)
    far.copy(5, {0: Actor(near)}, ALL)
    take(copies, 10, 10.0)

    class Recovering(Actor):
        """While a part is on its way the run goes back to what there is."""

        def __getattr__(self, name: str) -> Any:
            assert set(far.cuts()[0]) == {5}
            return super().__getattr__(name)

    far.copy(10, {0: Recovering(near)}, ALL)
    assert set(far.cuts()[0]) == {5}
    assert read_slot(far.cuts()[0][5], 5)["f"]["x"].tolist() == [5.0] * 3


ONE, TWO = Node("a" * 56, "10.0.0.1", 1), Node("b" * 56, "10.0.0.2", 1)


def test_cuts_that_a_lost_node_needs_stay_while_others_are_taken(fake_ray, monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr(keeping.time, "monotonic", lambda: now_s[0])
    keepers = Keepers([ONE, ONE, TWO])
    ranks = [HostCopies(own, 2) for own in keepers.slots()]

    def take_all(step: int) -> None:
        for copies in ranks:
            copies.begin(step, keepers.kept)
            copies.into("f")("x", torch.full((3,), float(step)))
            copies.finish()
        keepers.copy(step)

    fake_ray.has_arrived = False
    take_all(5)
    assert keepers.kept == (5,)
    fake_ray.has_arrived = True
    assert keepers.kept == (5,)
    now_s[0] += 3600.0
    take_all(10)
    assert keepers.kept == (10,)
    fake_ray.has_arrived = False
    take_all(15)
    assert keepers.kept == (10, 15)
    for step in (20, 25, 30):
        take_all(step)  # at their pace
    # A rank is lost: the last cut. A node is lost: the last of which there are copies.
    assert keepers.kept == (10, 15)
    assert {10, 15, 30} <= set(keepers._actors[TWO].keeper._own[2].cuts())
    keepers.lose([ONE])
    keepers.settle([TWO] * 3)
    for held in keepers._actors[TWO].keeper._copies.values():
        held.forget_after(10)  # the copies of 15 hadn't arrived
    step, places = keepers.last_cut()
    assert step == 10
    found = [read_slot(path, step)["f"]["x"].tolist() for path in places[TWO.address]]
    assert found == [[10.0] * 3] * 3
    assert keepers.kept == (), "there is no other node"


def test_copies_wait_for_their_share_of_the_time(fake_ray, monkeypatch):
    now_s = [0.0]
    keepers = Keepers([ONE, TWO])
    monkeypatch.setattr(keeping.time, "monotonic", lambda: now_s[0])
    copied = set()
    monkeypatch.setattr(Keeper, "copy", lambda _, step, *__: copied.add(step) or 2.0)
    keepers._due_s = 0.0
    for second in range(100):
        now_s[0] = float(second)
        keepers.copy(second)
    assert sorted(copied) == [0, 40, 80]


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
