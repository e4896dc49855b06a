"""Which topology a run can go on with after it has lost nodes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

from tsarch.cluster.fitting import Resources, num_placed
from tsarch.cluster.placement import node_supplies, rank_demands
from tsarch.config import Config, TopologyConfig
from tsarch.errors import RunFailedError

_LOOK_S = 1.0


def settle(config: Config, avoid: frozenset[str], say: Callable[[str], None]) -> Config:
    """The config, or one of fewer replicas if that is all that the cluster has place for now.

    Waits `failure.node_wait_s` for nodes to come back first. Ray must have been joined.

    Args:
        avoid: ids of nodes that nothing may be placed on.

    Raises:
        RunFailedError: not even `topology.min_replicas` find a place.
    """
    topology, wait_s = config.topology, config.failure.node_wait_s
    started_s = time.monotonic()
    said = False
    while True:
        # Totals, not what is free: what is in use is this run's own, on its way back.
        nodes = [node.total for node in node_supplies(avoid)]
        if _fits(topology, nodes):
            return config
        if time.monotonic() - started_s >= wait_s:
            break
        if not said:
            say(f"waiting up to {wait_s:.0f} s for a node to come back")
            said = True
        time.sleep(_LOOK_S)
    smaller = smaller_topology(topology, nodes)
    if smaller is None:
        least = topology.min_replicas
        allowed = "fewer replicas aren't allowed" if least is None else f"not even {least} fit"
        raise RunFailedError(
            f"no node came back within {wait_s:.0f} s, and the rest has no place for "
            f"{topology.teacher.replicas} teacher + {topology.student.replicas} student replicas; "
            f"{allowed} (topology.min_replicas). Go on with --resume when there is place."
        )
    say(
        f"going on with {smaller.teacher.replicas} teacher + {smaller.student.replicas} student "
        "replicas"
    )
    return config.model_copy(update={"topology": smaller})


def smaller_topology(topology: TopologyConfig, nodes: Sequence[Resources]) -> TopologyConfig | None:
    """The most replicas that fit on `nodes` (resources of each), between
    `topology.min_replicas` and those of `topology`; of equally many those that keep the ratio
    of the stages best."""
    if topology.min_replicas is None:
        return None
    teachers, students = topology.teacher.replicas, topology.student.replicas
    counts = itertools.product(
        range(min(topology.min_replicas, teachers), teachers + 1),
        range(min(topology.min_replicas, students), students + 1),
    )
    found = [
        (t + s, -abs(t / s - teachers / students), smaller)
        for t, s in counts
        if _fits(smaller := _with_replicas(topology, t, s), nodes)
    ]
    return max(found, key=lambda own: own[:2])[2] if found else None


def _fits(topology: TopologyConfig, nodes: Sequence[Resources]) -> bool:
    demands = rank_demands(topology)
    return num_placed(demands, nodes) == sum(demand.num_ranks for demand in demands)


def _with_replicas(topology: TopologyConfig, teachers: int, students: int) -> TopologyConfig:
    return topology.model_copy(
        update={
            "teacher": topology.teacher.model_copy(update={"replicas": teachers}),
            "student": topology.student.model_copy(update={"replicas": students}),
        }
    )
