"""Which topology a run can go on with after it has lost nodes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence

import ray

from cluster.placement import rank_bundles
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
        nodes = _usable_nodes(avoid)
        if fits(rank_bundles(topology), nodes):
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


def smaller_topology(
    topology: TopologyConfig, nodes: Sequence[Mapping[str, float]]
) -> TopologyConfig | None:
    """The most replicas that fit on `nodes` (free resources of each), between
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
        if fits(rank_bundles(smaller := _with_replicas(topology, t, s)), nodes)
    ]
    return max(found, key=lambda own: own[:2])[2] if found else None


def fits(bundles: Sequence[Mapping[str, float]], nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether every bundle finds a place, the largest first, each on the first node it fits."""
    free = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=lambda own: sorted(own.values()), reverse=True):
        place = next(
            (n for n in free if all(n.get(k, 0) + 1e-6 >= v for k, v in bundle.items())), None
        )
        if place is None:
            return False
        for name, amount in bundle.items():
            place[name] -= amount
    return True


def _with_replicas(topology: TopologyConfig, teachers: int, students: int) -> TopologyConfig:
    return topology.model_copy(
        update={
            "teacher": topology.teacher.model_copy(update={"replicas": teachers}),
            "student": topology.student.model_copy(update={"replicas": students}),
        }
    )


def _usable_nodes(avoid: frozenset[str]) -> list[dict[str, float]]:
    """Resources of the nodes that are there. Those in use count too: after a failure they are this
    run's own, which are on their way back."""
    return [
        node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in avoid
    ]
