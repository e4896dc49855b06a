"""The actors of ranks on Ray: where each is, new ones in the place of those that are gone, and
spare ones."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from tsarch.blueprint import Blueprint
from tsarch.cluster.nodes import end_ranks, nodes_of
from tsarch.cluster.placement import has_room, place_some, rank_bundles
from tsarch.cluster.watch import Node
from tsarch.cluster.worker import WATCH
from tsarch.errors import UserError
from tsarch.rank.api import ProcessApi, name_of
from tsarch.rank.status import log_file

_LOOK_S = 0.5
_READY_S = 120.0
_END_S = 2.0


@dataclass(frozen=True)
class _Seat:
    """Where a rank's actor goes: a bundle of a placement group."""

    group: PlacementGroup
    bundle: int


class RayMembers:
    """The actors of all ranks of a run."""

    def __init__(
        self,
        blueprint: Blueprint,
        placement: PlacementGroup,
        log_folder: Path,
        own_ray: bool,
        worker: type,
    ) -> None:
        self._blueprint = blueprint
        self._groups = [placement]
        self._log_folder = log_folder
        self._own_ray = own_ray
        self._worker = worker
        num_ranks = blueprint.topology.num_ranks
        self._seats = [_Seat(placement, rank) for rank in range(num_ranks)]
        self.nodes: list[Node] = nodes_of(placement, num_ranks)
        """Of each rank."""
        self.workers: list[Any] = [self._start(rank) for rank in range(num_ranks)]
        """The actor of each rank."""
        self._spares: list[tuple[Node, Any]] = []

    def remove(self, ranks: Collection[int], pids: Sequence[tuple[Node, int]]) -> None:
        """End actors; `pids`: their processes as far as they are known, which may be frozen."""
        for rank in ranks:
            ray.kill(self.workers[rank], no_restart=True)
        end_ranks(pids)

    def replace(self, ranks: Collection[int], lost_nodes: frozenset[str]) -> bool:
        """Actors in the place of removed ones, elsewhere if their nodes are lost; whether there is
        room."""
        self._spares = [own for own in self._spares if own[0].node_id not in lost_nodes]
        moved = sorted(rank for rank in ranks if self.nodes[rank].node_id in lost_nodes)
        if moved and not self._move(moved, lost_nodes):
            return False
        for rank in ranks:
            self.workers[rank] = self._take_spare(rank) or self._start(rank)
        return True

    def have_room_without(self, nodes: frozenset[str]) -> bool:
        """Whether the ranks that are on some nodes would have room on others now."""
        ranks = [rank for rank, node in enumerate(self.nodes) if node.node_id in nodes]
        return has_room(self._blueprint, ranks, nodes)

    def start_spares(self, wait: bool = False) -> None:
        """Start those that are missing, on each node that has ranks; `wait` until they are ready.
        (Not where ranks have GPUs: Ray gives one to the actor that asks for it.)"""
        can_restart = self._blueprint.failure.max_restarts > 0
        if not can_restart or "GPU" in rank_bundles(self._blueprint)[0]:
            return
        for node in set(self.nodes):
            missing = self._blueprint.runner.spares - sum(own == node for own, _ in self._spares)
            for _ in range(missing):
                self._spares.append((node, self._start_spare(node)))
        if wait:
            asked = [actor.do.remote(name_of(ProcessApi.warm_up), ()) for _, actor in self._spares]
            ray.get(asked, timeout=_READY_S)

    def leave_ray_behind(self) -> None:
        """End all ranks without Ray's head, and this process too when it is done, since Ray would
        wait for its head then."""
        actors = [*self.workers, *(actor for _, actor in self._spares)]
        ends = [actor.do_meanwhile.remote(name_of(ProcessApi.end), ()) for actor in actors]
        ray.wait(ends, num_returns=len(ends), timeout=_END_S)
        atexit.register(_end_at_once)

    def close(self) -> None:
        """End all actors and give the resources back."""
        for actor in [*self.workers, *(actor for _, actor in self._spares)]:
            ray.kill(actor, no_restart=True)
        for path in self._log_folder.glob("spare-*.now"):
            path.unlink(missing_ok=True)
        for group in self._groups:
            with suppress(RayError):
                remove_placement_group(group)

    def _start(self, rank: int) -> Any:
        seat, bundle = self._seats[rank], rank_bundles(self._blueprint)[rank]
        actor = ray.remote(concurrency_groups={WATCH: 1})(self._worker)
        log = str(log_file(self._log_folder, rank))
        return actor.options(
            num_cpus=bundle["CPU"],
            num_gpus=bundle.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(seat.group, seat.bundle),
        ).remote(self._blueprint, rank, self._threads(rank), log)

    def _start_spare(self, node: Node) -> Any:
        number = self._blueprint.topology.num_ranks + len(self._spares)
        actor = ray.remote(concurrency_groups={WATCH: 1})(self._worker)
        strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        log = str(self._log_folder / f"spare-{number}.log")
        spare = actor.options(num_cpus=0, scheduling_strategy=strategy).remote(
            self._blueprint, 0, 1, log
        )
        spare.do.remote(name_of(ProcessApi.warm_up), ())
        return spare

    def _take_spare(self, rank: int) -> Any:
        """The actor of a spare on the rank's node, as that rank; None: there is none."""
        for own in self._spares:
            node, actor = own
            if node == self.nodes[rank]:
                self._spares.remove(own)
                log = str(log_file(self._log_folder, rank))
                actor.do.remote(name_of(ProcessApi.become), (rank, self._threads(rank), log))
                return actor
        return None

    def _move(self, ranks: Sequence[int], lost_nodes: frozenset[str]) -> bool:
        """Reserve places on other nodes, once there are some; False: there are none in time."""
        runner, failure = self._blueprint.runner, self._blueprint.failure
        # With fewer replicas the run starts anew on what is left: that is decided elsewhere.
        wait_s = failure.node_wait_s if runner.min_replicas is None else 0.0
        given_up_s = time.monotonic() + wait_s
        while (group := self._placed(ranks, lost_nodes)) is None:
            if time.monotonic() > given_up_s:
                return False
            time.sleep(_LOOK_S)
        self._groups.append(group)
        for bundle, (rank, node) in enumerate(zip(ranks, nodes_of(group, len(ranks)), strict=True)):
            self._seats[rank], self.nodes[rank] = _Seat(group, bundle), node
        return True

    def _placed(self, ranks: Sequence[int], lost_nodes: frozenset[str]) -> PlacementGroup | None:
        try:
            return place_some(self._blueprint, ranks, lost_nodes)
        except UserError:  # there is no room for now
            return None

    def _threads(self, rank: int) -> int:
        """CPU threads: as the config says, or cores shared out on this machine; on a cluster what
        Ray reserves for a rank."""
        blueprint = self._blueprint
        threads = blueprint.stages[blueprint.topology.place(rank)[0]].threads
        if threads is not None:
            return threads
        if self._own_ray:
            return max(1, len(os.sched_getaffinity(0)) // blueprint.topology.num_ranks)
        return max(1, int(blueprint.runner.cpus_per_rank))


def _end_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
