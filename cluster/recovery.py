"""Which topology a run can go on with after it has lost nodes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

from tsarch.blueprint import Blueprint
from tsarch.cluster.fitting import NodeSupply, num_placed
from tsarch.cluster.placement import node_supplies, rank_demands
from tsarch.errors import NoPlaceError

_LOOK_S = 1.0


def settle(blueprint: Blueprint, avoid: frozenset[str], say: Callable[[str], None]) -> Blueprint:
    """The blueprint, or one of fewer replicas if that is all that the cluster has place for now.

    Waits `failure.node_wait_s` for nodes to come back first. Ray must have been joined.

    Args:
        avoid: ids of nodes that nothing may be placed on.

    Raises:
        NoPlaceError: not even `topology.min_replicas` find a place.
    """
    wait_s = blueprint.failure.node_wait_s
    started_s = time.monotonic()
    said = False
    while True:
        # Totals, not what is free: what is in use is this run's own, on its way back.
        nodes = node_supplies(avoid)
        if _fits(blueprint, nodes):
            return blueprint
        if time.monotonic() - started_s >= wait_s:
            break
        if not said:
            say(f"waiting up to {wait_s:.0f} s for a node to come back")
            said = True
        time.sleep(_LOOK_S)
    smaller = smaller_run(blueprint, nodes)
    if smaller is None:
        least = blueprint.runner.min_replicas
        allowed = "fewer replicas aren't allowed" if least is None else f"not even {least} fit"
        raise NoPlaceError(
            f"no node came back within {wait_s:.0f} s, and the rest has no place for "
            f"{_counts(blueprint)} replicas; "
            f"{allowed} (topology.min_replicas)."
        )
    say(f"going on with {_counts(smaller)} replicas")
    return smaller


def smaller_run(blueprint: Blueprint, nodes: Sequence[NodeSupply]) -> Blueprint | None:
    """The run with the most replicas that fit on `nodes`, between
    `topology.min_replicas` and its own; of equally many those that keep the ratio of the stages
    best."""
    least = blueprint.runner.min_replicas
    if least is None:
        return None
    whole = blueprint.topology.counts
    choices = itertools.product(*(range(min(least, count), count + 1) for count in whole))
    found = [
        (sum(counts), -abs(counts[0] / counts[-1] - whole[0] / whole[-1]), smaller)
        for counts in choices
        if _fits(smaller := _with_replicas(blueprint, counts), nodes)
    ]
    return max(found, key=lambda own: own[:2])[2] if found else None


def _fits(blueprint: Blueprint, nodes: Sequence[NodeSupply]) -> bool:
    demands = rank_demands(blueprint)
    return num_placed(demands, nodes, ever=True) == sum(demand.num_ranks for demand in demands)


def _with_replicas(blueprint: Blueprint, counts: Sequence[int]) -> Blueprint:
    stages = zip(blueprint.topology.stages, counts, strict=True)
    return blueprint.altered(topology={s.name: {"replicas": count} for s, count in stages})


def _counts(blueprint: Blueprint) -> str:
    """Such as `2 teacher + 1 student`."""
    topology = blueprint.topology
    return " + ".join(f"{topology.replicas(stage)} {stage}" for stage in blueprint.stages)
