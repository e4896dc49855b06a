"""Where ranks go: what they need, whether the cluster has it, and a placement group of it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from tsarch.blueprint import Blueprint
from tsarch.cluster.coming_nodes import coming_nodes, waiting_line
from tsarch.cluster.fitting import Demand, NodeSupply, assign, refusal
from tsarch.errors import Mistake, UserError
from tsarch.rank.supply import Supply
from tsarch.topology import Stage

_GRACE_S = 3.0
"""How long to wait for what others hold: Ray gives back what an ended job held with a delay."""
_RESTART_GRACE_S = 60.0
"""The same for what this run held before a rank failed: Ray ends its processes first."""
_POLL_S = 0.2
_LOOK_S = 2.0
_READY_S = 10.0
"""Ray places a group that has room within a fraction of a second."""


def rank_resources(blueprint: Blueprint, stage: Stage) -> dict[str, float]:
    """What Ray reserves for one rank of `stage`."""
    resources, device = {"CPU": blueprint.stages[stage].cpus}, blueprint.runner.device
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    if device == "cuda" or (device == "auto" and has_gpus):
        resources["GPU"] = 1.0
    return resources


def place(
    blueprint: Blueprint,
    avoid: frozenset[str] = frozenset(),
    restarted: bool = False,
    say: Callable[[str], None] = print,
) -> PlacementGroup:
    """Reserve a bundle for each rank: teachers packed on as few nodes as possible, students near
    them (see `fitting`), none on the nodes with the ids `avoid`.

    Args:
        restarted: after a failure; what is in use is this run's own, on its way back.

    Raises:
        UserError: there can never be room for the ranks, or others hold it (said after a few
            seconds in which it might have become free); with a table of demand and supply.
    """
    demands = rank_demands(blueprint)
    _wait_for_nodes(demands, avoid, blueprint.runner.wait_for_nodes_s, say)
    deadline_s = time.monotonic() + (_RESTART_GRACE_S if restarted else _GRACE_S)
    while (busy := refusal(demands, node_supplies(avoid), ever=False)) is not None:
        if time.monotonic() > deadline_s:
            _require(busy)
        time.sleep(_POLL_S)
    nodes = node_supplies(avoid)
    chosen = [nodes[node] for own in assign(demands, nodes, ever=False) for node in own]
    group = placement_group(
        rank_bundles(blueprint),
        strategy="PACK",
        name=f"tsarch run {blueprint.run.name}",
        bundle_label_selector=[{"ray.io/node-id": node.node_id} for node in chosen],
    )
    if not group.wait(_READY_S):
        remove_placement_group(group)
        _require(refusal(demands, node_supplies(avoid), ever=False))
        raise UserError.single(
            "topology",
            f"Ray has room for the ranks, but did not place them within {_READY_S:.0f} s.",
            "`ray status` on the cluster says what it waits for.",
        )
    return group


def _wait_for_nodes(
    demands: list[Demand], avoid: frozenset[str], patience_s: float, say: Callable[[str], None]
) -> None:
    """Wait for nodes that the cluster is bringing up, where the ranks have no room without them.

    Raises:
        UserError: there is no room, and no node comes that could have it.
    """
    started_s, said = time.monotonic(), ""
    while (never := refusal(demands, node_supplies(avoid), ever=True)) is not None:
        waited_s = time.monotonic() - started_s
        line = waiting_line(coming_nodes(), waited_s)
        if line is None or waited_s > patience_s:
            _require(never)
        elif line != said:
            say(line)
            said = line
        time.sleep(_LOOK_S)


def has_room(blueprint: Blueprint, ranks: Sequence[int], avoid: frozenset[str]) -> bool:
    """Whether some ranks have room now, on other nodes than those with the ids `avoid`."""
    return refusal(_demands_of(blueprint, ranks), node_supplies(avoid), ever=False) is None


def _demands_of(blueprint: Blueprint, ranks: Sequence[int]) -> list[Demand]:
    stages = [blueprint.topology.place(rank)[0] for rank in ranks]
    found = []
    for stage, demand in zip(blueprint.stages, rank_demands(blueprint), strict=True):
        if number := stages.count(stage):
            group = 1 if number % demand.group else demand.group
            found.append(replace(demand, num_ranks=number, fed_by=(), group=group))
    return found


def place_some(blueprint: Blueprint, ranks: Sequence[int], avoid: frozenset[str]) -> PlacementGroup:
    """Reserve a bundle for each of some ranks, none on the nodes with the ids `avoid`.

    Raises:
        UserError: there is no room for them now.
    """
    own = _demands_of(blueprint, ranks)
    _require(refusal(own, nodes := node_supplies(avoid), ever=False))
    chosen = [nodes[node] for places in assign(own, nodes, ever=False) for node in places]
    group = placement_group(
        [rank_bundles(blueprint)[rank] for rank in ranks],
        strategy="PACK",
        bundle_label_selector=[{"ray.io/node-id": node.node_id} for node in chosen],
    )
    if not group.wait(_READY_S):
        remove_placement_group(group)
        raise UserError.single("topology", "Ray did not place the ranks in time.")
    return group


def rank_demands(blueprint: Blueprint) -> list[Demand]:
    """What the ranks of both stages need."""
    graph = blueprint.topology.graph
    return [
        Demand(
            stage.value,
            own.replicas,
            rank_resources(blueprint, stage),
            own.nodes,
            tuple(source.value for source in graph.sources(stage)),
            blueprint.topology.num_slices(stage),
        )
        for stage, own in blueprint.stages.items()
    ]


def rank_bundles(blueprint: Blueprint) -> list[dict[str, float]]:
    """What Ray reserves for every rank, in order of ranks."""
    ranks = blueprint.topology
    bundles = {stage: rank_resources(blueprint, stage) for stage in blueprint.stages}
    return [bundles[ranks.place(rank)[0]] for rank in range(ranks.num_ranks)]


def node_supplies(avoid: frozenset[str] = frozenset()) -> list[NodeSupply]:
    """What the nodes of the cluster have, in all and free, but for those with the ids `avoid`."""
    free = ray._private.state.available_resources_per_node()
    nodes = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] not in avoid]
    holders = _holders()
    return [
        NodeSupply(
            node["NodeManagerAddress"],
            node["Resources"],
            free.get(node["NodeID"], {}),
            tuple(holders.get(node["NodeID"], ())),
            node.get("Labels", {}),
            node["NodeID"],
        )
        for node in sorted(nodes, key=lambda node: str(node["NodeManagerAddress"]))
    ]


def supply_on_cluster(blueprint: Blueprint) -> Supply:
    """What `topology: auto` may share out: what is free, and what this run holds already."""
    own = rank_bundles(blueprint)
    free = ray.available_resources()
    free = {name: free.get(name, 0.0) + sum(bundle[name] for bundle in own) for name in own[0]}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = sum(_num_fitting(own[0], node) for node in nodes)
    return Supply(
        "cuda" if "GPU" in free else "cpu",
        min(fitting, _num_fitting(own[0], free)),
        int(min(max(node.get("CPU", 0.0) for node in nodes), free["CPU"]) + 1e-6),
    )


def _require(mistake: Mistake | None) -> None:
    if mistake is not None:
        raise UserError([mistake])


def _holders() -> dict[str, list[str]]:
    """Node → who holds something there: placement groups by name, and jobs that have actors."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, node, held in _groups():
        amounts = ", ".join(f"{amount:g} {what}" for what, amount in held.items())
        found[node].append(f"{name} ({amounts})")
    own = ray.get_runtime_context().get_job_id()
    jobs = {job["JobID"]: job for job in ray._private.state.state.job_table()}
    for actor in ray._private.state.actors().values():
        job = jobs.get(actor["JobID"])
        if actor["State"] != "ALIVE" or job is None or actor["JobID"] == own:
            continue
        line = f"job of process {job['DriverPid']} on {job['DriverIPAddress']}"
        if line not in found[actor["Address"]["NodeID"]]:
            found[actor["Address"]["NodeID"]].append(line)
    return found


def _groups() -> Iterator[tuple[str, str, dict[str, float]]]:
    """(name, node, what it holds there) of all placement groups."""
    for group in placement_group_table().values():
        held: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for index, bundle in group["bundles"].items():
            for what, amount in bundle.items():
                held[group["bundles_to_node_id"][index]][what] += amount
        if group["state"] == "CREATED":
            for node, amounts in held.items():
                yield group["name"] or "an unnamed placement group", node, dict(amounts)


def _num_fitting(bundle: dict[str, float], supply: dict[str, Any]) -> int:
    """How many ranks of `bundle` each have room in `supply`."""
    return min(int(supply.get(name, 0.0) / amount + 1e-6) for name, amount in bundle.items())
