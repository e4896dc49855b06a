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

_CONNECT_TIMEOUT_S = 5.0
_PLACEMENT_TIMEOUT_S = 60.0
_OBJECT_STORE_BYTES = 256 * 2**20


def join_ray(topology: TopologyConfig, num_ranks: int, address: str | None) -> None:
    """Join the cluster at `address`; None: start a Ray on this machine, for this run alone.

    Raises:
        UserError: there is no cluster at the address.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        cpus = max(math.ceil(num_ranks * topology.cpus_per_rank), os.cpu_count() or 1)
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


def rank_resources(topology: TopologyConfig) -> dict[str, float]:
    """What Ray reserves for one rank."""
    resources = {"CPU": topology.cpus_per_rank}
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    if topology.device == "cuda" or (topology.device == "auto" and has_gpus):
        resources["GPU"] = 1.0
    return resources


def place(topology: TopologyConfig, num_ranks: int) -> PlacementGroup:
    """Reserve a bundle for each rank, packed on as few nodes as possible.

    Raises:
        UserError: the cluster has not enough in all, or not free within a minute.
    """
    bundle = rank_resources(topology)
    supply = ray.cluster_resources()
    for name, amount in bundle.items():
        if num_ranks * amount > supply.get(name, 0.0) + 1e-9:
            raise UserError.single(
                "topology",
                f"{topology.teacher.replicas} teacher + {topology.student.replicas} student "
                f"replicas need {num_ranks * amount:g} {name}s, the cluster has "
                f"{supply.get(name, 0.0):g}.",
                "Use fewer replicas or a larger cluster.",
            )
    group = placement_group([bundle] * num_ranks, strategy="PACK")
    if not group.wait(_PLACEMENT_TIMEOUT_S):
        remove_placement_group(group)
        free = {k: v for k, v in ray.available_resources().items() if k in bundle}
        raise UserError.single(
            "topology",
            f"{num_ranks} ranks of {bundle} each could not be placed within "
            f"{_PLACEMENT_TIMEOUT_S:.0f} s; free now: {free}.",
            "Wait for other jobs to end, or use fewer replicas.",
        )
    return group
