"""Rays for tests: several nodes on loopback, closed to whoever has no token."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray.cluster_utils import Cluster

from tsarch.cluster.authentication import private_ray

_OBJECT_STORE_BYTES = 80 * 2**20


@dataclass(frozen=True)
class TestCluster:
    """A Ray on this machine that this process has started and ends."""

    __test__ = False
    address: str
    environment: dict[str, str]
    """What a process needs to be let in."""


@contextmanager
def ray_cluster(nodes: Sequence[dict[str, Any]], closed: bool = True) -> Iterator[TestCluster]:
    """A Ray of such nodes (`num_cpus`, `num_gpus`), each with a raylet of its own; all are at
    127.0.0.1. `closed`: it asks for a token."""
    cluster = Cluster()
    try:
        with private_ray():
            if not closed:
                os.environ["RAY_AUTH_MODE"] = "disabled"
            environment = {n: os.environ[n] for n in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
            for node in nodes:
                cluster.add_node(object_store_memory=_OBJECT_STORE_BYTES, **node)
        yield TestCluster(cluster.address, environment)
    finally:
        cluster.shutdown()
