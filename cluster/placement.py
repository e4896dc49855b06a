"""Where ranks go: what they need, whether the cluster has it, and a placement group of it."""

from __future__ import annotations

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from tsarch.config import TopologyConfig
from tsarch.errors import UserError
from tsarch.run.balance import Supply
from tsarch.topology import Stage, Topology, rank_cpus

_PLACEMENT_TIMEOUT_S = 60.0


def rank_resources(topology: TopologyConfig, stage: Stage) -> dict[str, float]:
    """What Ray reserves for one rank of `stage`."""
    resources = {"CPU": rank_cpus(topology, stage)}
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    if topology.device == "cuda" or (topology.device == "auto" and has_gpus):
        resources["GPU"] = 1.0
    return resources


def place(topology: TopologyConfig) -> PlacementGroup:
    """Reserve a bundle for each rank, packed on as few nodes as possible.

    Raises:
        UserError: the cluster has not enough in all, or not free within a minute.
    """
    bundles = rank_bundles(topology)
    supply = ray.cluster_resources()
    for name in bundles[0]:
        needed = sum(bundle[name] for bundle in bundles)
        if needed > supply.get(name, 0.0) + 1e-9:
            raise UserError.single(
                "topology",
                f"{topology.teacher.replicas} teacher + {topology.student.replicas} student "
                f"replicas need {needed:g} {name}s, the cluster has "
                f"{supply.get(name, 0.0):g}.",
                "Use fewer replicas or a larger cluster.",
            )
    group = placement_group(bundles, strategy="PACK")
    if not group.wait(_PLACEMENT_TIMEOUT_S):
        remove_placement_group(group)
        free = {k: v for k, v in ray.available_resources().items() if k in bundles[0]}
        raise UserError.single(
            "topology",
            f"ranks of {_listed(bundles)} could not be placed within "
            f"{_PLACEMENT_TIMEOUT_S:.0f} s; free now: {free}.",
            "Wait for other jobs to end, or use fewer replicas.",
        )
    return group


def rank_bundles(topology: TopologyConfig) -> list[dict[str, float]]:
    """What Ray reserves for every rank, in order of ranks."""
    ranks = Topology.from_config(topology)
    bundles = {stage: rank_resources(topology, stage) for stage in Stage}
    return [bundles[ranks.place(rank)[0]] for rank in range(ranks.num_ranks)]


def supply_on_cluster(topology: TopologyConfig) -> Supply:
    """What `topology: auto` may share out: what is free, and what this run holds already."""
    own = rank_bundles(topology)
    free = ray.available_resources()
    free = {name: free.get(name, 0.0) + sum(bundle[name] for bundle in own) for name in own[0]}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = sum(_num_fitting(own[0], node) for node in nodes)
    return Supply(
        "cuda" if "GPU" in free else "cpu",
        min(fitting, _num_fitting(own[0], free)),
        int(min(max(node.get("CPU", 0.0) for node in nodes), free["CPU"]) + 1e-6),
    )


def _num_fitting(bundle: dict[str, float], supply: dict[str, float]) -> int:
    """How many ranks of `bundle` each have room in `supply`."""
    return min(int(supply.get(name, 0.0) / amount + 1e-6) for name, amount in bundle.items())


def _listed(bundles: list[dict[str, float]]) -> str:
    """`2 × {'CPU': 1.0}, 1 × {'CPU': 3.0}`."""
    kinds = [bundle for place, bundle in enumerate(bundles) if bundle not in bundles[:place]]
    return ", ".join(f"{bundles.count(kind)} × {kind}" for kind in kinds)
