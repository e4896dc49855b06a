"""A thread of the driver's that asks every rank how it is, and finds those that are lost or hang.

Every raylet is knocked at: refusals mean that it has ended, and the node is lost with it (see
`knocking`), though its ranks may live on for some seconds, until Ray ends them. A rank answers in a
thread of its own, so one that computes or waits for others still answers. If all ranks of a node
are silent, a silence of its raylet too of `failure.node_timeout_s` means that the node is lost. A
rank that is silent on a node that answers is frozen, which takes `failure.hang_timeout_s` to be
sure of.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import state as cluster_state
from ray.exceptions import RayError

from tsarch.cluster.knocking import Answer, Door, is_gone, knock
from tsarch.rank.api import ProcessApi, name_of
from tsarch.rank.hangs import Finding, find_hang
from tsarch.rank.status import BUILDING, Status

_POLL_S = 0.3
_POLL_PER_RANK_S = 0.02  # a poll costs the driver about 0.5 ms
_SUSPICIOUS_POLLS = 2.5
"""Of so many a rank has answered none: its node is knocked at."""
_STOP_TIMEOUT_S = 4.0
_DRAIN_POLL_S = 3.0
_BUILDING_S = 60.0
"""Longer patience with processes that start, since imports can keep every thread waiting."""


@dataclass(frozen=True)
class Node:
    """Where a rank is."""

    node_id: str
    address: str
    port: int
    """Of its raylet."""


class Watch:
    """Watches ranks until `stop`."""

    def __init__(
        self,
        workers: Sequence[Any],
        nodes: Sequence[Node],
        hang_timeout_s: float,
        node_timeout_s: float,
    ) -> None:
        """`nodes`: that of each rank."""
        self._node_timeout_s = node_timeout_s
        self._every_s = max(_POLL_S, _POLL_PER_RANK_S * len(workers))
        self._workers = list(workers)
        self._nodes = list(nodes)
        self._hang_timeout_s = hang_timeout_s
        now_s = time.monotonic()
        self._asked: dict[int, Any] = {}
        self._statuses: dict[int, Status] = {}
        self._heard_s = dict.fromkeys(range(len(workers)), now_s)
        self._doors = {node: Door(node_timeout_s) for node in nodes}
        self._finding: Finding | None = None
        self._draining: frozenset[str] = frozenset()
        self._looked_at_drains_s = now_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    @property
    def finding(self) -> Finding | None:
        """What was found wrong first."""
        return self._finding

    @property
    def draining(self) -> frozenset[str]:
        """Ids of nodes with ranks that are to be taken away (a notice of preemption)."""
        return self._draining

    @property
    def node_patience_s(self) -> float:
        """The longest that it takes to find that a node is lost."""
        return self._node_timeout_s + _SUSPICIOUS_POLLS * self._every_s + _STOP_TIMEOUT_S

    def node(self, rank: int) -> Node:
        """Where a rank is."""
        return self._nodes[rank]

    def last_status(self, rank: int) -> Status | None:
        """What a rank said last."""
        return self._statuses.get(rank)

    def all_statuses(self) -> list[tuple[Node, Status]]:
        """Where every rank that was ever heard of is, and what it said last."""
        return [(self._nodes[rank], status) for rank, status in self._statuses.items()]

    def lost_node(self, rank: int) -> Finding | None:
        """Whether the node of a rank whose process is gone is gone too."""
        node = self._nodes[rank]
        if not is_gone(node.address, node.port, self._node_timeout_s) and not _is_given_up(node):
            return None
        ranks = tuple(r for r, own in enumerate(self._nodes) if own == node)
        return Finding("node lost", ranks, self.silent_s(rank))

    def silent_s(self, rank: int) -> float:
        """Seconds since a rank said something."""
        return time.monotonic() - self._heard_s[rank]

    def stop(self) -> None:
        """Ask no more."""
        self._ended.set()
        self._thread.join(timeout=_STOP_TIMEOUT_S)

    def _run(self) -> None:
        every_s = self._every_s
        while not self._ended.is_set() and self._finding is None:
            started_s = time.monotonic()
            with suppress(RayError):  # the driver has lost its own Ray: all nodes are silent then
                self._ask(every_s)
                self._find_drains()
            self._finding = self._look()
            self._ended.wait(max(0.0, every_s - (time.monotonic() - started_s)))

    def _ask(self, patience_s: float) -> None:
        for rank, worker in enumerate(self._workers):
            if rank not in self._asked:
                self._asked[rank] = worker.do_meanwhile.remote(name_of(ProcessApi.status), ())
        references = list(self._asked.values())
        ray.wait(references, num_returns=len(references), timeout=patience_s)
        for rank, reference in list(self._asked.items()):
            if ray.wait([reference], timeout=0)[0]:
                del self._asked[rank]
                # If its process is gone, a command to it fails, or else its node is lost.
                with suppress(RayError):
                    self._statuses[rank] = ray.get(reference)
                    self._heard_s[rank] = time.monotonic()

    def _look(self) -> Finding | None:
        suspicious_s = _SUSPICIOUS_POLLS * self._every_s
        silent = {rank for rank in self._heard_s if self.silent_s(rank) > suspicious_s}
        for node, door in self._doors.items():
            ranks = tuple(rank for rank, own in enumerate(self._nodes) if own == node)
            knocked_s, answer = time.monotonic(), knock(node.address, node.port)
            if answer is Answer.SILENCE and not silent.issuperset(ranks):
                answer = Answer.TAKEN  # its ranks are heard: it is only late
            door.note(answer, knocked_s)
            if door.is_lost(time.monotonic()):
                return Finding("node lost", ranks, min(map(self.silent_s, ranks)))
        there = [rank for rank in sorted(silent) if self._doors[self._nodes[rank]].answers]
        frozen = tuple(rank for rank in there if self.silent_s(rank) > self._patience_s(rank))
        if frozen:
            return Finding("frozen", frozen, self.silent_s(frozen[0]))
        return None if silent else find_hang(self._statuses, self._hang_timeout_s)

    def _patience_s(self, rank: int) -> float:
        """How long a rank may be silent on a node that answers."""
        status = self._statuses.get(rank)
        builds = status is None or status.command in BUILDING
        return self._hang_timeout_s + (_BUILDING_S if builds else 0.0)

    def _find_drains(self) -> None:
        if time.monotonic() - self._looked_at_drains_s < _DRAIN_POLL_S:
            return
        self._looked_at_drains_s = time.monotonic()
        own = {node.node_id for node in self._nodes}
        self._draining = frozenset(own & set(cluster_state.get_draining_nodes()))


def is_reachable(node: Node) -> bool:
    """Whether the raylet of a node takes connections now."""
    return knock(node.address, node.port) is Answer.TAKEN


def _is_given_up(node: Node) -> bool:
    """Whether Ray itself counts a node as dead, which its raylet may not have heard."""
    return any(own["NodeID"] == node.node_id and not own["Alive"] for own in ray.nodes())
