"""Where ranks go: what they need, whether the cluster has it, and a placement group of it."""

from __future__ import annotations

import math
import os
import socket
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from tsarch.config import TopologyConfig
from tsarch.errors import UserError
from tsarch.run.balance import Supply
from tsarch.topology import Stage, Topology, rank_cpus, total_cpus

_CONNECT_TIMEOUT_S = 5.0
_PLACEMENT_TIMEOUT_S = 60.0
_OBJECT_STORE_BYTES = 256 * 2**20


def join_ray(topology: TopologyConfig, address: str | None) -> None:
    """Join the cluster at `address`; None: start a Ray on this machine, for this run alone.

    Raises:
        UserError: there is no cluster at the address.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        cpus = max(math.ceil(total_cpus(topology)), len(os.sched_getaffinity(0)))
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )
        return
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError.single(
            f"--address {address}", f"no Ray cluster can be joined: {reason}"
        ) from None


def _knock(address: str) -> None:
    """Fail at once if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit() or "/" in host:
        raise ValueError("it is neither `auto` nor HOST:PORT")
    with socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S):
        pass


def rank_resources(topology: TopologyConfig, stage: Stage) -> dict[str, float]:
    """What Ray reserves for one rank of `stage`."""
    resources = {"CPU": rank_cpus(topology, stage)}
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    if topology.device == "cuda" or (topology.device == "auto" and has_gpus):
        resources["GPU"] = 1.0
    return resources


def place(topology: TopologyConfig, avoid: frozenset[str] = frozenset()) -> PlacementGroup:
    """Reserve a bundle for each rank, packed on as few nodes as possible, none on the nodes with
    the ids `avoid`.

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
    group = placement_group(bundles, strategy="PACK", **_elsewhere(avoid, len(bundles)))
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


def _elsewhere(avoid: frozenset[str], num_bundles: int) -> dict[str, Any]:
    """Options that keep bundles off nodes."""
    if not avoid:
        return {}
    wanted = {"ray.io/node-id": f"!in({','.join(sorted(avoid))})"}
    return {"bundle_label_selector": [wanted] * num_bundles}


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
