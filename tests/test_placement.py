"""Whether ranks have room: the pure arithmetic, and a Ray of two nodes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import (
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from tests.helpers import ROOT, tiny_blueprint
from tests.ray_clusters import TestCluster, ray_cluster
from tsarch.blueprint import Blueprint
from tsarch.cluster import placement
from tsarch.cluster.fitting import Demand, NodeSupply, assign, num_placed, refusal, table
from tsarch.cluster.joining import join_ray
from tsarch.cluster.placement import node_supplies, place
from tsarch.errors import UserError

GRACE_S = 3.0
POLL_S = 0.2

HOLDER = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
@ray.remote(num_cpus=2)
class Holder:
    def hold(self): pass
holder = Holder.remote()
ray.get(holder.hold.remote())
print("held", flush=True)
sys.stdin.read()
"""


def demands(*kinds: tuple[int, float, float]) -> list[Demand]:
    """(ranks, CPUs, GPUs) of the teacher, then of the student."""
    return [
        Demand(stage, ranks, {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus})
        for stage, (ranks, cpus, gpus) in zip(("teacher", "student"), kinds, strict=True)
    ]


def node(has: dict[str, float]) -> NodeSupply:
    return NodeSupply("n", has, has)


def cpu_nodes(*cpus: float) -> list[NodeSupply]:
    return [node({"CPU": own}) for own in cpus]


@pytest.mark.parametrize(
    ("kinds", "cpus", "placed"),
    [
        (((2, 1, 0), (2, 1, 0)), (2, 2), 4),
        (((2, 1, 0), (2, 1, 0)), (2, 1), 3),
        (((1, 3, 0), (1, 1, 0)), (2, 2), 1),  # enough in all, but no node for the teacher
        (((2, 3, 0), (2, 2, 0)), (4, 6), 4),  # the larger node first, the larger ranks first
        (((2, 2, 0), (2, 3, 0)), (6, 4), 4),
        (((3, 0.5, 0), (1, 0.5, 0)), (2,), 4),
        (((1, 0.1, 0), (9, 0.1, 0)), (1,), 10),  # ten tenths are one
        (((1, 1, 0), (1, 1, 0)), (), 0),
    ],
)
def test_ranks_are_put_on_nodes_whole(kinds, cpus, placed):
    assert num_placed(demands(*kinds), cpu_nodes(*cpus), ever=True) == placed


def test_a_rank_needs_its_gpu_and_its_cpus_on_the_same_node():
    nodes = [node({"CPU": 1.0, "GPU": 4.0}), node({"CPU": 8.0})]
    assert num_placed(demands((4, 1, 1), (1, 1, 0)), nodes, ever=True) == 2
    nodes = [node({"CPU": 8.0, "GPU": 4.0}), node({"CPU": 8.0})]
    assert num_placed(demands((4, 1, 1), (12, 1, 0)), nodes, ever=True) == 16


def gpu_nodes(*gpus: float) -> list[NodeSupply]:
    return [node({"CPU": 64, "GPU": own}) for own in gpus]


@pytest.mark.parametrize(
    ("teachers", "students", "gpus", "places"),
    [
        (4, 4, (8, 8), ((0, 0, 0, 0), (0, 0, 0, 0))),  # together, where one node has room for all
        (4, 4, (4, 4), ((0, 0, 0, 0), (1, 1, 1, 1))),  # teachers aren't spread to be near students
        (6, 2, (4, 4), ((0, 0, 0, 0, 1, 1), (1, 1))),
        (2, 2, (2, 8), ((1, 1), (1, 1))),  # a node for both, not the smallest for the teachers
        (2, 7, (2, 8), ((1, 1), (1, 1, 1, 1, 1, 1, 0))),  # most are near
        (8, 1, (2, 8, 4), ((1,) * 8, (2,))),
        (3, 3, (2, 2, 2), ((0, 0, 1), (1, 2, 2))),  # first where a teacher is
        (5, 2, (4, 3, 2), ((0, 0, 0, 0, 1), (1, 1))),
    ],
)
def test_teachers_are_packed_and_students_are_near_them(teachers, students, gpus, places):
    teacher, student = demands((teachers, 1, 1), (students, 1, 1))
    fed = replace(student, fed_by=("teacher",))
    assert assign([teacher, fed], gpu_nodes(*gpus), ever=True) == places


@pytest.mark.parametrize(
    ("teachers", "group", "gpus", "places"),
    [
        (4, 2, (3, 3), (0, 0, 1, 1)),
        (4, 1, (3, 3), (0, 0, 0, 1)),
        (8, 4, (6, 4, 4), (0, 0, 0, 0, 1, 1, 1, 1)),
        (4, 4, (4, 8), (1, 1, 1, 1)),  # where its student has room too
        (4, 4, (2, 2, 1), (0, 0, 1, 1)),  # no node has room for all: a run is better than none
    ],
)
def test_ranks_that_share_contexts_are_on_one_node(teachers, group, gpus, places):
    teacher, student = demands((teachers, 1, 1), (1, 1, 1))
    wanted = [replace(teacher, group=group), replace(student, fed_by=("teacher",))]
    assert assign(wanted, gpu_nodes(*gpus), ever=True)[0] == places


def test_stages_keep_to_the_nodes_that_they_are_given():
    teacher, student = demands((2, 1, 1), (1, 1, 1))
    nodes = [replace(own, labels={"for": who}) for own, who in zip(gpu_nodes(4, 4), "st")]
    wanted = [replace(teacher, labels={"for": "t"}), replace(student, labels={"for": "s"})]
    assert assign(wanted, nodes, ever=True) == ((1, 1), (0,))
    assert refusal(wanted, nodes, ever=True) is None
    three = [replace(own, labels={"for": who}) for own, who in zip(gpu_nodes(8, 2, 8), "tts")]
    assert assign(wanted, three, ever=True) == ((1, 1), (2,)), "no need of the larger one"
    mistake = refusal([wanted[0], replace(student, labels={"for": "x"})], nodes, ever=True)
    assert mistake is not None
    assert "no node is labelled for=x, as `topology.student.nodes` asks for." in mistake.what


def test_a_thousand_ranks_are_placed_in_no_time():
    teacher, student = demands((1024, 1, 1), (1024, 1, 1))
    places = assign(
        [teacher, replace(student, fed_by=("teacher",))], gpu_nodes(*[8] * 300), ever=True
    )
    assert [len(set(own)) for own in places] == [128, 128]


@pytest.mark.parametrize(
    ("kinds", "cpus", "reason"),
    [
        (((3, 2, 0), (1, 1, 0)), (2, 2), "they need 7 CPUs, it has 4."),
        (((1, 1, 1), (1, 1, 1)), (2, 2), "they need 2 GPUs, it has 0."),
        (((1, 3, 0), (1, 1, 0)), (2, 2), "a teacher rank needs 3 CPUs on one node, and none has"),
        (((2, 2, 0), (1, 2, 0)), (3, 3), "a rank must fit on one node, and only 2 of 3 do."),
    ],
)
def test_what_can_never_be_placed_says_why(kinds, cpus, reason):
    mistake = refusal(demands(*kinds), cpu_nodes(*cpus), ever=True)
    assert mistake is not None
    assert "can never have room on this cluster: " in mistake.what
    assert reason in mistake.what


def test_what_others_hold_is_not_now_and_what_fits_is_no_mistake():
    wanted = demands((2, 2, 0), (1, 1, 0))
    nodes = [
        NodeSupply("10.0.0.1", {"CPU": 4}, {}, ("tsarch run other (4 CPU)",)),
        NodeSupply("10.0.0.2", {"CPU": 2}, {"CPU": 2}),
    ]
    assert refusal(wanted, nodes, ever=True) is None
    mistake = refusal(wanted, nodes, ever=False)
    assert mistake is not None
    assert mistake.what.endswith("but not now: there is room for 1 of them.")
    assert mistake.hint.startswith("Wait until what others hold is free again")
    assert refusal(wanted, [*nodes, *cpu_nodes(4)], ever=False) is None


def test_the_table():
    nodes = [
        NodeSupply("10.0.0.1", {"CPU": 16, "GPU": 4}, {"CPU": 7.5}, ("run a (4 GPU)", "job b")),
        NodeSupply("10.0.0.20", {"CPU": 8}, {"CPU": 8}),
    ]
    assert table(demands((3, 0.5, 1), (1, 2, 1)), nodes).splitlines() == [
        "  needed   ranks  CPU each  GPU each",
        "  teacher      3       0.5         1",
        "  student      1         2         1",
        "  in all       4       3.5         4",
        "",
        "  node       CPU  free  GPU  free  held by",
        "  10.0.0.1    16   7.5    4     0  run a (4 GPU); job b",
        "  10.0.0.20    8     8    0     0  –",
    ]


@pytest.fixture(scope="module")
def cluster() -> Iterator[TestCluster]:
    with ray_cluster([{"num_cpus": 2}, {"num_cpus": 1}]) as own:
        yield own


@pytest.fixture
def joined(cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestCluster]:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    join_ray(2.0, cluster.address, print)
    wait_for_free(3)  # what the test before gave back
    yield cluster
    ray.shutdown()


def wait_for_free(cpus: float) -> None:
    """Wait until the cluster says that so many CPUs are free."""
    while ray.available_resources().get("CPU", 0.0) != cpus:
        time.sleep(0.05)


class Clock:
    """In place of `time`: waiting takes no time, and something may happen meanwhile."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._happens: list[tuple[float, Callable[[], None]]] = []

    def at(self, when_s: float, act: Callable[[], None]) -> None:
        """Let something happen."""
        self._happens.append((when_s, act))

    def monotonic(self) -> float:
        """Seconds that were waited."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Wait."""
        self.now_s += seconds
        due = [(when_s, act) for when_s, act in self._happens if when_s <= self.now_s]
        for what in due:
            self._happens.remove(what)
            what[1]()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that `place` knows."""
    clock = Clock()
    monkeypatch.setattr(placement, "time", clock)
    return clock


def wanting(folder: Path, teachers: int, cpus: float) -> Blueprint:
    topology = {"teacher": {"replicas": teachers}, "cpus_per_rank": cpus}
    return tiny_blueprint(folder, topology=topology)


def refused(blueprint: Blueprint) -> str:
    """The message."""
    with pytest.raises(UserError) as caught:
        place(blueprint)
    return str(caught.value)


def hold_all_of_the_first_node(clock: Clock, until_s: float) -> None:
    """Another's placement group, until it is given back."""
    before = placement_group([{"CPU": 2}], strategy="PACK")
    ray.get(before.ready())
    wait_for_free(1)

    def give_back() -> None:
        remove_placement_group(before)
        wait_for_free(3)

    clock.at(until_s, give_back)


@pytest.mark.ray
@pytest.mark.slow
class TestOnTwoNodes:
    def test_too_little_in_all_is_refused_at_once(self, joined, clock, tmp_path):
        text = refused(wanting(tmp_path, 3, 1.0))
        assert "they need 4 CPUs, it has 3." in text
        assert "  in all       4         4\n" in text
        assert clock.now_s == 0.0

    def test_a_rank_that_no_node_can_hold_is_refused_at_once(self, joined, clock, tmp_path):
        text = refused(wanting(tmp_path, 1, 1.5))
        assert "a rank must fit on one node, and only 1 of 2 do." in text
        assert text.count("127.0.0.1") == 2
        assert clock.now_s == 0.0

    def test_what_fits_is_placed_and_what_it_holds_is_told_to_the_next(
        self, joined, clock, tmp_path
    ):
        group = place(wanting(tmp_path, 2, 1.0))
        try:
            wait_for_free(0)
            text = refused(wanting(tmp_path, 1, 1.0))
        finally:
            remove_placement_group(group)
        assert "but not now: there is room for 0 of them." in text
        assert "    2     0  tsarch run tiny (2 CPU)" in text
        assert "    1     0  tsarch run tiny (1 CPU)" in text
        assert GRACE_S <= clock.now_s <= GRACE_S + 2 * POLL_S

    def test_what_is_given_back_a_moment_later_is_waited_for(self, joined, clock, tmp_path):
        hold_all_of_the_first_node(clock, until_s=GRACE_S / 2)
        group = place(wanting(tmp_path, 2, 1.0))
        remove_placement_group(group)
        assert GRACE_S / 2 <= clock.now_s <= GRACE_S / 2 + POLL_S

    def test_nodes_to_avoid_are_no_supply(self, joined, tmp_path):
        (small,) = (n["NodeID"] for n in ray.nodes() if n["Resources"]["CPU"] == 1)
        with pytest.raises(UserError, match=r"they need 3 CPUs, it has 2\."):
            place(wanting(tmp_path, 2, 1.0), frozenset([small]))
        group = place(wanting(tmp_path, 1, 1.0), frozenset([small]))
        nodes = set(placement_group_table(group)["bundles_to_node_id"].values())
        remove_placement_group(group)
        assert len(nodes) == 1
        assert small not in nodes

    def test_what_a_failed_run_held_is_waited_for_longer(self, joined, clock, tmp_path):
        hold_all_of_the_first_node(clock, until_s=10 * GRACE_S)
        group = place(wanting(tmp_path, 2, 1.0), restarted=True)
        remove_placement_group(group)
        assert 10 * GRACE_S <= clock.now_s <= 10 * GRACE_S + POLL_S

    def test_the_actors_of_another_job_are_named(self, joined, clock, tmp_path):
        command = [sys.executable, "-c", HOLDER, joined.address]
        environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            while not any(node.holders for node in node_supplies()):
                time.sleep(0.1)
            wait_for_free(1)
            text = refused(wanting(tmp_path, 2, 1.0))
            other.communicate(b"")
        assert "there is room for 1 of them." in text
        assert f"job of process {other.pid} on 127.0.0.1" in text
        assert GRACE_S <= clock.now_s <= GRACE_S + 2 * POLL_S
