"""Nodes that a cluster's autoscaler is bringing up, and those that it can't."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import ray_constants
from ray.experimental import internal_kv

from tsarch.cluster.joining import join_ray
from tsarch.errors import UserError

_SSH = "waiting-for-ssh"
_UNREACHABLE_S = 40.0
"""A host that is on answers at once; one that boots, within a minute or two."""
_JOIN_PATIENCE_S = 600.0
_LOOK_S = 1.0


@dataclass(frozen=True)
class ComingNode:
    """A node that isn't there yet."""

    name: str
    """Its address, or how many of which type."""
    status: str
    """The autoscaler's word for how far it is."""
    has_failed: bool = False


def coming_nodes() -> list[ComingNode]:
    """All of them; none where no autoscaler looks after the cluster. Ray must have been joined."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    if is_autoscaler_v2():
        return _second_autoscaler()
    text = internal_kv._internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS)
    return [] if not text else of_report(json.loads(text).get("autoscaler_report") or {})


def of_report(report: dict[str, Any]) -> list[ComingNode]:
    """Those in the report of Ray's first autoscaler."""
    pending = [ComingNode(ip, status) for ip, _, status in report.get("pending_nodes") or ()]
    launches = (report.get("pending_launches") or {}).items()
    failed = [ComingNode(ip, "failed", True) for ip, _ in report.get("failed_nodes") or ()]
    names = {node.name for node in pending}
    return [
        *pending,
        *(ComingNode(f"{count} × {kind}", "being launched") for kind, count in launches),
        *(node for node in failed if node.name not in names),
    ]


def waiting_line(nodes: Sequence[ComingNode], waited_s: float) -> str | None:
    """What to say of nodes that are waited for; None: none will come."""
    coming = [node for node in nodes if not node.has_failed]
    if not coming:
        return None
    names = ", ".join(f"{node.name} ({node.status})" for node in coming)
    parts = [f"waiting for nodes that are coming up: {names}"]
    if waited_s > _UNREACHABLE_S:
        silent = [node.name for node in coming if node.status == _SSH]
        if silent:
            parts.append(
                f"{' and '.join(silent)} can't be reached by ssh from the head: on? right address, "
                "account and key?"
            )
    failed = [node.name for node in nodes if node.has_failed]
    if failed:
        parts.append(f"{', '.join(failed)} failed to start: `ray monitor` shows why")
    return "; ".join(parts)


def wait_for_nodes(wanted: int, address: str, say: Callable[[str], None]) -> None:
    """Wait until the Ray at `address`, which may only be starting, has so many nodes.

    Raises:
        UserError: it has fewer after ten minutes.
    """
    deadline_s = time.monotonic() + _JOIN_PATIENCE_S
    said = -1
    while (found := _num_nodes(address)) < wanted:
        if found != said:
            say(f"{found} of {wanted} nodes are in the Ray cluster; waiting for the others")
            said = found
        if time.monotonic() > deadline_s:
            what = f"only {found} of {wanted} nodes have joined within {_JOIN_PATIENCE_S:.0f} s."
            raise UserError.single(f"--address {address}", what, "Their Rays' output says why.")
        time.sleep(_LOOK_S)


def _num_nodes(address: str) -> int:
    try:
        join_ray(0.0, address, lambda text: None)
    except UserError:
        return 0  # its head is only starting
    try:
        return sum(node["Alive"] for node in ray.nodes())
    finally:
        ray.shutdown()


def _second_autoscaler() -> list[ComingNode]:
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    return [
        *(ComingNode(n.ip_address, n.details or "coming") for n in status.pending_nodes),
        *(
            ComingNode(f"{own.count} × {own.ray_node_type_name}", "being launched")
            for own in status.pending_launches
        ),
        *(
            ComingNode(f"{own.count} × {own.ray_node_type_name}", own.details or "failed", True)
            for own in status.failed_launches
        ),
    ]
