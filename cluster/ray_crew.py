"""The crew on Ray: one actor a rank, in one placement group. The driver only gives commands and
collects numbers; tensors go from rank to rank."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import ray
from ray.exceptions import RayError

from tsarch.blueprint import Blueprint
from tsarch.cluster.head_watch import HeadWatch
from tsarch.cluster.joining import join_ray
from tsarch.cluster.keeper import Keepers
from tsarch.cluster.nodes import stop_processes
from tsarch.cluster.own_ray import hush_ray
from tsarch.cluster.placement import place, supply_on_cluster
from tsarch.cluster.probe import ActorApi, check_ranks
from tsarch.cluster.rank_calls import Calls
from tsarch.cluster.ray_members import RayMembers
from tsarch.cluster.recovery import settle
from tsarch.cluster.watch import Watch, is_reachable
from tsarch.cluster.worker import Worker
from tsarch.errors import RankFailedError
from tsarch.rank.api import ProcessApi, name_of
from tsarch.rank.crew import Draining, Kept, Mended, Pending
from tsarch.rank.mending import SPARES_AFTER_S, MendedCrew
from tsarch.rank.pacer import Pace, keeps_cuts
from tsarch.rank.status import log_file, note_file
from tsarch.rank.supply import Supply
from tsarch.specs import RunnerSpec
from tsarch.telling.seats import Seat, picture, spans, split_groups, write_seats
from tsarch.topology import Stage

if TYPE_CHECKING:
    from tsarch.planning.capacity import RankNeed

P = ParamSpec("P")
A = TypeVar("A")

MAX_TICKS = 256
"""Most ticks that ranks run per call: what a driver of short steps waits for at most."""
_TARGET_S = 0.5
_TARGET_PER_RANK_S = 0.01  # a call to a rank costs the driver about 0.5 ms


def pace_of(num_ranks: int) -> Pace:
    """With many ranks calls are for more ticks, so that they take a twentieth of the driver's
    time."""
    return Pace(2, MAX_TICKS, max(_TARGET_S, _TARGET_PER_RANK_S * num_ranks))


class RayCrew(MendedCrew):
    """All ranks of a run on a Ray cluster."""

    def __init__(self, blueprint: Blueprint, members: RayMembers, log_folder: Path) -> None:
        super().__init__(blueprint, pace_of(blueprint.topology.num_ranks))
        self._members = members
        self._log_folder = log_folder
        self._keepers = Keepers(members.nodes) if keeps_cuts(blueprint) else None
        self._spares_due_s: float | None = None
        self._lost_nodes: frozenset[str] = frozenset()
        silence_s = blueprint.failure.node_timeout_s
        self._head = HeadWatch(ray.get_runtime_context().gcs_address, silence_s)
        self._watch = self._new_watch()
        self.calls = Calls(members.workers, self.topology, self._watch, log_folder)

    @classmethod
    def start(
        cls,
        blueprint: Blueprint,
        address: str | None,
        log_folder: Path,
        say: Callable[[str], None],
        worker: type = Worker,
        needs: Mapping[Stage, RankNeed] | None = None,
        restarted: bool = False,
        avoid: frozenset[str] = frozenset(),
    ) -> Self:
        """Join the Ray at `address` (None: start one here), place the ranks, let them join each
        other and build.

        Args:
            worker: class of the ranks' actors; another one than `Worker` only to measure or test
                the driver.
            needs: memory of a rank of each stage, to be compared with what is free; None: not.
            restarted: after a failure, when nodes may be missing: wait for them, then do with
                fewer replicas if that is allowed (see `blueprint` of the crew).
            avoid: ids of nodes that no rank may be placed on.

        Raises:
            UserError: no such cluster, it can't hold the ranks, or they don't agree on versions,
                devices, memory, shared folders, data or time.
            RankFailedError: a rank failed.
        """
        say("starting a Ray on this machine" if address is None else "joining the Ray cluster")
        hush_ray()
        join_ray(blueprint.total_cpus, address, say)
        try:
            if restarted:
                blueprint = settle(blueprint, avoid, say)
            placement = place(blueprint, avoid, restarted, say)
        except BaseException:
            ray.shutdown()
            raise
        members = RayMembers(blueprint, placement, log_folder, address is None, worker)
        crew = cls(blueprint, members, log_folder)
        try:
            crew.assemble(needs, say)
        except BaseException:
            crew.close()
            raise
        return crew

    def assemble(self, needs: Mapping[Stage, RankNeed] | None, say: Callable[[str], None]) -> None:
        """Check the new ranks, let them meet and build."""
        say(f"{self.topology.num_ranks} ranks are importing torch and DeepSpeed")
        seats = check_ranks(self, self.blueprint, self._log_folder, needs)
        _tell(seats, self._log_folder, say)
        self.join()
        self.keep_cuts()
        say("building models and engines on the ranks")
        self.build(self.blueprint)

    def submit(
        self,
        method: Callable[Concatenate[ActorApi, P], A],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> Pending[A]:
        """See `Crew`."""
        assert not keywords, "calls by name pass arguments by place"
        return Pending(self.calls.submit(name_of(method), arguments))

    def ask(
        self,
        method: Callable[Concatenate[ActorApi, P], A],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> list[A]:
        """See `Crew`."""
        return self.collect(self.submit(method, *arguments, **keywords))

    def collect(self, pending: Pending[A]) -> list[A]:
        """See `Crew`."""
        return self.calls.collect(pending.handles)

    def is_done(self, pending: Pending[Any]) -> bool:
        """See `Crew`."""
        done, _ = ray.wait(pending.handles, num_returns=len(pending.handles), timeout=0)
        return len(done) == len(pending.handles)

    def forget(self, pending: Pending[Any]) -> None:
        """See `Crew`."""
        self.calls.forget(pending.handles)

    @property
    def ending(self) -> str | None:
        """See `Crew`."""
        if self._head.lost_for_s < self.blueprint.failure.head_wait_s:
            return None
        return f"the head of the Ray cluster ({self._head.address}) doesn't answer"

    @property
    def kept_cuts(self) -> tuple[int, ...]:
        """See `Crew`."""
        return () if self._keepers is None else self._keepers.kept

    def copy_cut(self, step: int) -> None:
        """See `Crew`."""
        if self._keepers is not None:
            self._keepers.copy(step)

    def notice(self) -> Draining | None:
        """Nodes of this run that are to be taken away. (A run that trains for a while gets its
        spare processes.)"""
        now_s = time.monotonic()
        if not self._head.answers:  # whatever asks it would wait
            return None
        if self._spares_due_s is None:
            self._spares_due_s = now_s + SPARES_AFTER_S
        elif now_s > self._spares_due_s:
            self._members.start_spares()
        new = self._watch.draining - self.calls.drained
        if not new:
            return None
        self.calls.drained |= new
        nodes = {self._watch.node(rank) for rank in range(self.topology.num_ranks)}
        names = sorted(node.address for node in nodes if node.node_id in new)
        reason = f"notice: {' and '.join(names)} will be taken from the cluster"
        return Draining(reason, new if self._members.have_room_without(new) else frozenset())

    def supply(self, runner: RunnerSpec) -> Supply:
        """What `topology: auto` may share out on this cluster."""
        return supply_on_cluster(self.blueprint)

    def build(self, blueprint: Blueprint) -> None:
        """See `CrewOfProcesses`."""
        if self._keepers is not None:
            self._keepers.clear()
        super().build(blueprint)

    def keep_cuts(self) -> None:
        """Tell each rank where it keeps cuts in memory."""
        if self._keepers is None:
            return
        try:
            slots = [(own,) for own in self._keepers.slots()]
        except RayError:  # one is gone: without them a run goes back to its checkpoints
            self._keepers = None
            return
        self.calls.collect(self.calls.submit_each(name_of(ProcessApi.keep_in), slots))

    def mend(self, failure: RankFailedError) -> Mended | None:
        """See `Crew`. Ranks on nodes that are lost are lost too."""
        self._lost_nodes |= failure.lost_nodes
        there = enumerate(self._members.nodes)
        lost = {rank for rank, node in there if node.node_id in self._lost_nodes}
        if self._keepers is not None:  # a node that is to be taken away still has what it holds
            gone = [n for n in set(self._members.nodes) if n.node_id in self._lost_nodes]
            self._keepers.lose([node for node in gone if not is_reachable(node)])
        try:
            return super().mend(failure.of(failure.ranks | lost))
        except RayError:  # what isn't a rank is in trouble too
            return None

    def remove(self, ranks: Collection[int]) -> None:
        """See `MendedCrew`."""
        self._watch.stop()
        known = {rank: self._watch.last_status(rank) for rank in ranks}
        nodes = self._members.nodes
        pids = [(nodes[rank], own.pid) for rank, own in known.items() if own is not None]
        self._members.remove(ranks, pids)

    def replace(self, ranks: Collection[int]) -> bool:
        """See `MendedCrew`."""
        self._spares_due_s = None
        if not self._members.replace(ranks, self._lost_nodes):
            return False
        if self._keepers is not None:
            self._keepers.settle(self._members.nodes)
        return True

    def let_go(self, ranks: Collection[int], stages: tuple[str, ...]) -> None:
        """See `MendedCrew`."""
        for rank in ranks:
            let_go = self._members.workers[rank].do_meanwhile
            let_go.remote(name_of(ProcessApi.let_go), (stages,))

    def busy(self) -> set[int]:
        """See `MendedCrew`."""
        return self.calls.busy()

    def start_over(self) -> None:
        """See `MendedCrew`."""
        self._watch = self._new_watch()
        drained = self.calls.drained
        self.calls = Calls(self._members.workers, self.topology, self._watch, self._log_folder)
        self.calls.drained = drained

    def start_spares(self, wait: bool = False) -> None:
        """See `MendedCrew`."""
        self._members.start_spares(wait)

    def last_cut(self) -> Kept | None:
        """See `MendedCrew`."""
        if self._keepers is None:
            return None
        self.keep_cuts()
        return None if self._keepers is None else self._keepers.last_cut()

    def close(self) -> None:
        """End the actors, give the resources back, and stop Ray if this run started it."""
        self._watch.stop()
        self._head.stop()
        if self._head.lost_for_s > 0:
            self._members.leave_ray_behind()
            return
        num_ranks = len(self._members.workers)
        if self._keepers is not None:
            self._keepers.close()
        self._members.close()
        if self.calls.has_failed:
            stop_processes(self._watch)
        for rank in range(num_ranks):
            note_file(log_file(self._log_folder, rank)).unlink(missing_ok=True)
        ray.shutdown()

    def _new_watch(self) -> Watch:
        members = self._members
        failure = self.blueprint.failure
        return Watch(members.workers, members.nodes, failure.hang_timeout_s, failure.node_timeout_s)


def _tell(seats: Sequence[Seat], log_folder: Path, say: Callable[[str], None]) -> None:
    """Say which rank is where, and write it for the report."""
    write_seats(log_folder, seats)
    if len({seat.node for seat in seats}) > 1 or any(seat.gpu_ids for seat in seats):
        for line in picture(seats):
            say(line)
    if split := split_groups(seats):
        say(
            f"note: ranks {spans(split)} share contexts with ranks on other hosts, and trade "
            "tokens with them in every layer; no host has room for a whole group of "
            "topology.teacher.sequence_parallel"
        )
    if (most := max(seat.niceness for seat in seats)) > os.getpriority(os.PRIO_PROCESS, 0):
        say(
            f"note: ranks give way to whatever else runs on their hosts (niceness {most}); where "
            "the hosts are yours, start Ray with RAY_worker_niceness=0"
        )
