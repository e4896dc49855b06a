"""Two seconds of messages and sums between the hosts of a cluster, one process on each.

The process groups are those of a run (`tsarch/parallel/groups.py`), on CPUs: what is found here is
what the link and the table's exchange will meet.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping

from tsarch.cluster.doctor_facts import HostFacts
from tsarch.cluster.doctor_host import host_facts
from tsarch.errors import one_line

_MESSAGE_BYTES = 4 * 2**20
_CONNECT_S = 3.0
_GROUP_TIMEOUT_S = 20.0


class Examiner:
    """Lives on a host while a doctor looks at it."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._listener: socket.socket | None = None
        self._meeting: object | None = None

    def facts(self, run_folder: str, marks: Mapping[str, str]) -> HostFacts:
        """See `host_facts`."""
        return host_facts(self._node, run_folder, marks)

    def wall_clock(self) -> float:
        """Seconds since 1970 by this host's clock."""
        return time.time()

    def listen(self) -> tuple[str, int]:
        """Take connections from now on; where."""
        self._listener = socket.create_server((self._node, 0))
        return self._node, int(self._listener.getsockname()[1])

    def reach(self, targets: Mapping[str, tuple[str, int]]) -> dict[str, str]:
        """Addresses that can't be connected to → why."""
        failed = {}
        for target, place in targets.items():
            try:
                socket.create_connection(place, timeout=_CONNECT_S).close()
            except OSError as error:
                failed[target] = one_line(error).rstrip(".")
        return failed

    def meet(self) -> tuple[str, int]:
        """Be the host where the processes meet; where."""
        from tsarch.parallel.groups import MeetingPoint

        point = MeetingPoint(self._node)
        self._meeting = point  # as long as this lives
        return point.address.host, point.address.port

    def exchange(
        self, place: tuple[str, int], rank: int, num_ranks: int, seconds: float
    ) -> tuple[dict[int, float], float]:
        """Bytes a second that are sent to others, by rank, and of sums over all. Every process
        calls it at once."""
        import torch

        from tsarch.parallel.groups import Address, new_cross_group, use_interface_of

        use_interface_of(self._node)
        group = new_cross_group(
            Address(*place), rank, num_ranks, torch.device("cpu"), _GROUP_TIMEOUT_S
        )
        values = torch.ones(_MESSAGE_BYTES // 4)
        pairs = _pairs(num_ranks)
        sent: dict[int, float] = {}
        for source, target in pairs:
            took_s = _timed(group, values, rank, source, target, seconds / (2 * len(pairs)))
            if rank == source:
                sent[target] = took_s
        return sent, _sums(group, values, seconds / 2)


def _pairs(num_ranks: int) -> list[tuple[int, int]]:
    """All of a few hosts, of many the neighbours in a ring."""
    if num_ranks <= 6:
        return [(a, b) for a in range(num_ranks) for b in range(num_ranks) if a != b]
    return [(a, (a + 1) % num_ranks) for a in range(num_ranks)]


def _timed(group, values, rank: int, source: int, target: int, seconds: float) -> float:  # type: ignore[no-untyped-def]
    """Bytes a second from one to another, by so many messages as take about `seconds`; the first,
    whose answer says how long one takes, doesn't count."""
    import torch

    count = torch.zeros(1)
    for measured in (False, True):
        number = int(count.item()) if measured else 1
        began = time.perf_counter()
        for _ in range(number):
            if rank == source:
                group.send([values], target, 0).wait()
            elif rank == target:
                group.recv([values], source, 0).wait()
        if rank == target:
            group.send([count], source, 1).wait()
        elif rank == source:
            group.recv([torch.zeros(1)], target, 1).wait()
        took_s = time.perf_counter() - began
        if rank == source and not measured:
            count.fill_(max(int(seconds / took_s), 1))
        if not measured:
            group.broadcast(count, source).wait()
    return float(number * values.nbytes / took_s)


def _sums(group, values, seconds: float) -> float:  # type: ignore[no-untyped-def]
    """Bytes a second of sums over all."""
    import torch

    began, number = time.perf_counter(), 0
    go_on = torch.ones(1)
    while go_on.item() > 0:
        group.allreduce(values).wait()
        number += 1
        go_on.fill_(float(time.perf_counter() - began < seconds))
        group.broadcast(go_on, 0).wait()
    return float(number * values.nbytes / (time.perf_counter() - began))
