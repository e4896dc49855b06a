"""One process a node that holds what its ranks keep in memory, so that it outlives them. With
several nodes each holds a copy of another's too, so that a node that is lost takes nothing with it.

Copies travel through Ray's object store, beside the training; hidden states never do. They go part
by part, with pauses, since a network that is slow is the training's first of all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tsarch.checkpoint.slots import HeldSlots, IncomingCut, newest_common
from tsarch.cluster.watch import Node

_TIMEOUT_S = 5.0
_FETCH_TIMEOUT_S = 60.0
_RETRY_S = 10.0
_NUM_AT_ONCE = 4
"""Calls of a keeper at a time: none waits for one whose data doesn't come."""
_NUM_COPIES = 2
"""Of each rank of another node: the last, and one on its way."""

Raw = npt.NDArray[np.uint8]
Cuts = dict[int, dict[int, str]]
"""Rank → step → path."""


@dataclass(frozen=True)
class Flow:
    """How a copy travels."""

    part_bytes: int
    share: float
    """Of the time, at most, in which parts are on their way."""


BESIDE = Flow(2**22, 0.05)
"""Beside the training."""
_AT_ONCE = Flow(2**26, 1.0)
"""While nobody trains."""


class Keeper:
    """The process."""

    def __init__(self) -> None:
        self._own: dict[int, HeldSlots] = {}
        self._copies: dict[int, HeldSlots] = {}
        self._lock = threading.Lock()
        self._given_up = threading.Event()
        """Of the copies that are on their way here now."""

    def make(self, ranks: Sequence[int]) -> dict[int, tuple[str, ...]]:
        """Slots for ranks of this node, those that there are or new ones."""
        for rank in ranks:
            if rank not in self._own:
                self._own[rank] = HeldSlots.make()
        return {rank: self._own[rank].paths for rank in ranks}

    def cuts(self) -> Cuts:
        """All whole cuts here, of the ranks of this node and of others. What is on its way here is
        given up: whoever asks wants to go back to one of these."""
        self._give_up()
        found: Cuts = {}
        for held in (self._copies, self._own):
            for rank, own in held.items():
                found.setdefault(rank, {}).update(own.cuts())
        return found

    def clear(self) -> None:
        """Cuts that are there are of another run."""
        self._give_up()
        for held in (*self._own.values(), *self._copies.values()):
            held.clear()

    def forget_after(self, step: int) -> None:
        """The run has gone back to the cut of `step`: those after it will come again."""
        for held in (*self._own.values(), *self._copies.values()):
            held.forget_after(step)

    def read(self, rank: int, step: int, start: int, most_bytes: int) -> Raw:
        """A part of a cut as it is, a smaller one at its end.

        Raises:
            LookupError: it isn't here any more.
        """
        held = self._own if rank in self._own else self._copies
        return np.frombuffer(held[rank].read(step, start, most_bytes), dtype=np.uint8)

    def copy(self, step: int, sources: Mapping[int, Any], flow: Flow) -> float:
        """Hold a cut of ranks of another node; `sources`: the keeper that has it, by rank. Returns
        the seconds in which parts were on their way.

        Raises:
            RayError: a keeper is gone, or doesn't have it any more.
        """
        given_up, busy_s = self._given_up, 0.0
        for rank, source in sources.items():
            with self._lock:
                if given_up.is_set():
                    return busy_s
                incoming = self._place(rank, step)
            while True:
                started_s = time.monotonic()
                raw = ray.get(source.read.remote(rank, step, incoming.end, flow.part_bytes))
                with self._lock:
                    if given_up.is_set():
                        return busy_s
                    incoming.put(raw.data)
                part_s = time.monotonic() - started_s
                busy_s += part_s
                if incoming.is_whole:
                    break
                given_up.wait(part_s / flow.share - part_s)
        return busy_s

    def _place(self, rank: int, step: int) -> IncomingCut:
        """Where a cut of a rank of another node goes."""
        if rank not in self._copies:
            self._copies[rank] = HeldSlots.make(_NUM_COPIES)
        return self._copies[rank].incoming(step)

    def _give_up(self) -> None:
        """Take nothing in any more of what is on its way here."""
        with self._lock:
            self._given_up.set()
            self._given_up = threading.Event()


@dataclass(frozen=True)
class _OnWay:
    """A cut whose parts are being brought to the next nodes."""

    step: int
    started_s: float
    tasks: Sequence[Any]
    """Of the keepers that take it in."""


class Keepers:
    """Those of all nodes that have ranks."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        """`nodes`: that of each rank."""
        self._actors: dict[Node, Any] = {}
        self._nodes: list[Node] = []
        self._on_way: _OnWay | None = None
        self._arrived: int | None = None
        """Step of the last cut that is at the next nodes too."""
        self._due_s = time.monotonic()
        """When the next one may leave."""
        self.settle(nodes)

    def settle(self, nodes: Sequence[Node]) -> None:
        """Ranks are on these nodes now."""
        self._nodes = list(nodes)
        for node in set(nodes) - set(self._actors):
            strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
            options = {"num_cpus": 0, "max_concurrency": _NUM_AT_ONCE}
            actor = ray.remote(Keeper).options(**options, scheduling_strategy=strategy)
            self._actors[node] = actor.remote()

    def lose(self, nodes: Collection[Node]) -> None:
        """Nodes are gone."""
        self._actors = {node: own for node, own in self._actors.items() if node not in nodes}

    def slots(self) -> list[tuple[str, ...]]:
        """The slots of each rank, on its node.

        Raises:
            RayError: a keeper is gone.
        """
        asked = {n: a.make.remote(self._ranks_of(n)) for n, a in self._there().items()}
        found = {n: ray.get(paths, timeout=_FETCH_TIMEOUT_S) for n, paths in asked.items()}
        return [found[node][rank] for rank, node in enumerate(self._nodes)]

    def clear(self) -> None:
        """See `Keeper`."""
        self._on_way = self._arrived = None
        for actor in self._actors.values():
            actor.clear.remote()

    @property
    def kept(self) -> tuple[int, ...]:
        """Steps of the cuts that ranks must leave where they are: the last whose copies have
        arrived, with which the loss of a node is made good, and the one that is on its way."""
        self._look()
        on_way = None if self._on_way is None else self._on_way.step
        steps = (self._arrived, on_way) if len(self._there()) > 1 else ()
        return tuple(step for step in steps if step is not None)

    def copy(self, step: int) -> None:
        """All ranks have taken a cut: bring each node's part to the next node, unless another is on
        its way, or was until a moment ago."""
        self._look()
        there = self._there()
        nodes = sorted(there, key=lambda node: node.node_id)
        started_s = time.monotonic()
        if len(nodes) < 2 or self._on_way is not None or started_s < self._due_s:
            return
        tasks = []
        for node, other in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
            sources = dict.fromkeys(self._ranks_of(node), there[node])
            tasks.append(there[other].copy.remote(step, sources, BESIDE))
        self._on_way = _OnWay(step, started_s, tasks)

    def _look(self) -> None:
        """See whether the cut that is on its way has arrived."""
        own = self._on_way
        if own is None or ray.wait(own.tasks, num_returns=len(own.tasks), timeout=0)[1]:
            return
        try:
            busy_s = max(ray.get(own.tasks))
            self._arrived, self._due_s = own.step, own.started_s + busy_s / BESIDE.share
        except RayError:  # a node is lost, or has no memory left: another cut may arrive
            self._due_s = time.monotonic() + _RETRY_S
        self._on_way = None

    def last_cut(self) -> tuple[int, dict[str, tuple[str, ...]]] | None:
        """The last cut that all ranks' keepers have, brought to every host that has ranks: its
        step, and host → its paths by rank; None: there is none."""
        self._on_way = self._arrived = None
        cuts = self._cuts()
        merged = [
            {step: "" for own in cuts.values() for step in own.get(rank, {})}
            for rank in range(len(self._nodes))
        ]
        found = newest_common(merged)
        if found is None:
            return None
        step = found[0]
        try:
            self._spread(step, cuts)
        except RayError:
            return None
        hosts: dict[str, dict[int, str]] = {}
        for node, own in self._cuts().items():
            paths = {rank: held[step] for rank, held in own.items() if step in held}
            hosts.setdefault(node.address, {}).update(paths)
        ranks = range(len(self._nodes))
        needed = {node.address for node in self._nodes}
        if any(set(hosts.get(host, {})) < set(ranks) for host in needed):
            return None
        self._arrived = step
        return step, {host: tuple(hosts[host][rank] for rank in ranks) for host in needed}

    def _spread(self, step: int, cuts: Mapping[Node, Cuts]) -> None:
        """Bring what a node lacks there; what is newer is forgotten.

        Raises:
            RayError: it can't be.
        """
        there = self._there().values()
        ray.get([own.forget_after.remote(step) for own in there], timeout=_FETCH_TIMEOUT_S)
        tasks = []
        for node, actor in self._there().items():
            own = cuts.get(node, {})
            lacking = [r for r in range(len(self._nodes)) if step not in own.get(r, {})]
            sources = {
                rank: next(
                    self._actors[other] for other, c in cuts.items() if step in c.get(rank, {})
                )
                for rank in lacking
            }
            if lacking:
                tasks.append(actor.copy.remote(step, sources, _AT_ONCE))
        ray.get(tasks, timeout=_FETCH_TIMEOUT_S)

    def _cuts(self) -> dict[Node, Cuts]:
        """What each node has, of those that answer."""
        asked = {node: actor.cuts.remote() for node, actor in self._actors.items()}
        found = {}
        for node, cuts in asked.items():
            try:
                found[node] = ray.get(cuts, timeout=_TIMEOUT_S)
            except RayError:
                continue
        return found

    def close(self) -> None:
        """End them."""
        for actor in self._actors.values():
            ray.kill(actor, no_restart=True)
        self._actors = {}

    def _there(self) -> dict[Node, Any]:
        return {node: self._actors[node] for node in set(self._nodes)}

    def _ranks_of(self, node: Node) -> list[int]:
        return [rank for rank, own in enumerate(self._nodes) if own == node]
