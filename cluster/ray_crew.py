"""The crew on Ray: one actor a rank, in one placement group. The driver only gives commands and
collects numbers; tensors go from rank to rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tsarch.blueprint import Blueprint
from tsarch.cluster.joining import join_ray
from tsarch.cluster.nodes import nodes_of, stop_processes
from tsarch.cluster.own_ray import hush_ray
from tsarch.cluster.placement import place, rank_bundles, supply_on_cluster
from tsarch.cluster.probe import ActorApi, check_ranks
from tsarch.cluster.rank_calls import Calls
from tsarch.cluster.recovery import settle
from tsarch.cluster.watch import Watch
from tsarch.cluster.worker import WATCH, Worker
from tsarch.rank.api import name_of
from tsarch.rank.crew import CrewOfProcesses, Draining, Pending
from tsarch.rank.pacer import Pace
from tsarch.rank.status import log_file, note_file
from tsarch.rank.supply import Supply
from tsarch.specs import RunnerSpec
from tsarch.telling.seats import Seat, picture, write_seats
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


class RayCrew(CrewOfProcesses):
    """All ranks of a run on a Ray cluster."""

    def __init__(
        self,
        blueprint: Blueprint,
        workers: Sequence[Any],
        placement: PlacementGroup,
        log_folder: Path,
    ) -> None:
        super().__init__(blueprint, pace_of(blueprint.topology.num_ranks))
        self._workers = list(workers)
        self._placement = placement
        self._log_folder = log_folder
        nodes = nodes_of(placement, self.topology.num_ranks)
        self._watch = Watch(workers, nodes, blueprint.failure.hang_timeout_s)
        self.calls = Calls(self._workers, self.topology, self._watch, log_folder)

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
        workers = _start_workers(blueprint, placement, log_folder, address is None, worker)
        crew = cls(blueprint, workers, placement, log_folder)
        try:
            say(f"{crew.topology.num_ranks} ranks are importing torch and DeepSpeed")
            seats = check_ranks(crew, blueprint, log_folder, needs)
            _tell(seats, log_folder, say)
            crew.join()
            say("building models and engines on the ranks")
            crew.build(blueprint)
        except BaseException:
            crew.close()
            raise
        return crew

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

    def notice(self) -> Draining | None:
        """Nodes of this run that are to be taken away."""
        new = self._watch.draining - self.calls.drained
        if not new:
            return None
        self.calls.drained |= new
        nodes = {self._watch.node(rank) for rank in range(self.topology.num_ranks)}
        names = sorted(node.address for node in nodes if node.node_id in new)
        return Draining(f"notice: {' and '.join(names)} will be taken from the cluster")

    def supply(self, runner: RunnerSpec) -> Supply:
        """What `topology: auto` may share out on this cluster."""
        return supply_on_cluster(self.blueprint)

    def close(self) -> None:
        """End the actors, give the resources back, and stop Ray if this run started it."""
        self._watch.stop()
        for worker in self._workers:
            ray.kill(worker, no_restart=True)
        if self.calls.has_failed:
            stop_processes(self._watch)
        for rank in range(len(self._workers)):
            note_file(log_file(self._log_folder, rank)).unlink(missing_ok=True)
        self._workers = []
        remove_placement_group(self._placement)
        ray.shutdown()


def _tell(seats: Sequence[Seat], log_folder: Path, say: Callable[[str], None]) -> None:
    """Say which rank is where, and write it for the report."""
    write_seats(log_folder, seats)
    if len({seat.node for seat in seats}) > 1 or any(seat.gpu_ids for seat in seats):
        for line in picture(seats):
            say(line)
    if (most := max(seat.niceness for seat in seats)) > os.getpriority(os.PRIO_PROCESS, 0):
        say(
            f"note: ranks give way to whatever else runs on their hosts (niceness {most}); where "
            "the hosts are yours, start Ray with RAY_worker_niceness=0"
        )


def _start_workers(
    blueprint: Blueprint,
    placement: PlacementGroup,
    log_folder: Path,
    own_ray: bool,
    worker: type,
) -> list[Any]:
    topology, bundles = blueprint.topology, rank_bundles(blueprint)
    threads = [
        blueprint.stages[topology.place(rank)[0]].threads or _default_threads(blueprint, own_ray)
        for rank in range(topology.num_ranks)
    ]
    actor = ray.remote(concurrency_groups={WATCH: 1})(worker)
    return [
        actor.options(
            num_cpus=bundles[rank]["CPU"],
            num_gpus=bundles[rank].get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement, rank),
        ).remote(blueprint, rank, threads[rank], str(log_file(log_folder, rank)))
        for rank in range(topology.num_ranks)
    ]


def _default_threads(blueprint: Blueprint, own_ray: bool) -> int:
    """Cores shared out on this machine; on a cluster what Ray reserves for a rank."""
    if own_ray:
        return max(1, len(os.sched_getaffinity(0)) // blueprint.topology.num_ranks)
    return max(1, int(blueprint.runner.cpus_per_rank))
