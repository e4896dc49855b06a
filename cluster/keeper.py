"""One process a node that holds what its ranks keep in memory, so that it outlives them. With
several nodes each holds a copy of another's too, so that a node that is lost takes nothing with it.

Copies travel through Ray's object store, beside the training; hidden states never do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tsarch.checkpoint.slots import HeldSlots, newest_common
from tsarch.cluster.watch import Node

_TIMEOUT_S = 5.0
_FETCH_TIMEOUT_S = 60.0
_NUM_AT_ONCE = 4
"""Calls of a keeper at a time: none waits for one whose data doesn't come."""

Raw = npt.NDArray[np.uint8]
Cuts = dict[int, dict[int, str]]
"""Rank → step → path."""


class Keeper:
    """The process."""

    def __init__(self) -> None:
        self._own: dict[int, HeldSlots] = {}
        self._copies: dict[int, HeldSlots] = {}

    def make(self, ranks: Sequence[int]) -> dict[int, tuple[str, ...]]:
        """Slots for ranks of this node, those that there are or new ones."""
        for rank in ranks:
            if rank not in self._own:
                self._own[rank] = HeldSlots.make()
        return {rank: self._own[rank].paths for rank in ranks}

    def cuts(self) -> Cuts:
        """All whole cuts here, of the ranks of this node and of others."""
        found: Cuts = {}
        for held in (self._copies, self._own):
            for rank, own in held.items():
                found.setdefault(rank, {}).update(own.cuts())
        return found

    def clear(self) -> None:
        """Cuts that are there are of another run."""
        for held in (*self._own.values(), *self._copies.values()):
            held.clear()

    def read(self, rank: int, step: int) -> Raw:
        """A cut as it is."""
        held = self._own if rank in self._own else self._copies
        return np.frombuffer(held[rank].read(step), dtype=np.uint8)

    def copy(self, step: int, ranks: Sequence[int], *raw: Raw) -> None:
        """Hold a cut of ranks of another node."""
        for rank, own in zip(ranks, raw, strict=True):
            if rank not in self._copies:
                self._copies[rank] = HeldSlots.make()
            self._copies[rank].put(step, own.data)


class Keepers:
    """Those of all nodes that have ranks."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        """`nodes`: that of each rank."""
        self._actors: dict[Node, Any] = {}
        self._nodes: list[Node] = []
        self._copying: list[Any] = []
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
        for actor in self._actors.values():
            actor.clear.remote()

    @property
    def is_copying(self) -> bool:
        """Whether a cut is on its way to other nodes: until it is there, no other is to be taken,
        so that it stays where it comes from."""
        if self._copying:
            _, left = ray.wait(self._copying, num_returns=len(self._copying), timeout=0)
            self._copying = left
        return bool(self._copying)

    def copy(self, step: int) -> None:
        """All ranks have taken a cut: bring each node's part to the next node."""
        there = self._there()
        nodes = sorted(there, key=lambda node: node.node_id)
        if len(nodes) < 2:
            return
        for node, other in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
            ranks = self._ranks_of(node)
            raw = [there[node].read.remote(rank, step) for rank in ranks]
            self._copying.append(there[other].copy.remote(step, ranks, *raw))

    def last_cut(self) -> tuple[int, dict[str, tuple[str, ...]]] | None:
        """The last cut that all ranks' keepers have, brought to every host that has ranks: its
        step, and host → its paths by rank; None: there is none."""
        self._copying = []
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
        return step, {host: tuple(hosts[host][rank] for rank in ranks) for host in needed}

    def _spread(self, step: int, cuts: Mapping[Node, Cuts]) -> None:
        """Bring what a node lacks there.

        Raises:
            RayError: it can't be.
        """
        tasks = []
        for node, actor in self._there().items():
            own = cuts.get(node, {})
            lacking = [r for r in range(len(self._nodes)) if step not in own.get(r, {})]
            sources = [
                next(self._actors[other] for other, c in cuts.items() if step in c.get(rank, {}))
                for rank in lacking
            ]
            raw = [s.read.remote(rank, step) for s, rank in zip(sources, lacking, strict=True)]
            if lacking:
                tasks.append(actor.copy.remote(step, lacking, *raw))
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
