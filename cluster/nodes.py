"""Small tasks that look at processes on the nodes of a cluster, and end them."""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tsarch.cluster.watch import Node, Watch, is_reachable
from tsarch.rank.status import ProcessFacts, look_at

_TASK_TIMEOUT_S = 6.0
_END_PATIENCE_S = 2.0


def nodes_of(placement: PlacementGroup, num_bundles: int) -> list[Node]:
    """The node of each bundle of a placement group."""
    nodes = {node["NodeID"]: node for node in ray.nodes()}
    ids = placement_group_table(placement)["bundles_to_node_id"]
    found = [nodes[ids[bundle]] for bundle in range(num_bundles)]
    return [Node(n["NodeID"], n["NodeManagerAddress"], int(n["NodeManagerPort"])) for n in found]


def look_from_here(node: Node, pid: int, log_file: Path) -> ProcessFacts | None:
    """What is left of a rank's process on a node; None: the node doesn't say, in time."""
    if node.node_id == ray.get_runtime_context().get_node_id():
        return look_at(pid, log_file)  # needs no new process, which a busy host has no time for
    return _result(_start(node, look_at, pid, log_file)) if is_reachable(node) else None


def stop_processes(watch: Watch) -> None:
    """See to it that the processes of all ranks end, on nodes that can be reached."""
    pids: defaultdict[Node, list[int]] = defaultdict(list)
    for node, status in watch.all_statuses():
        pids[node].append(status.pid)
    tasks = [
        _start(node, end_processes, own, _END_PATIENCE_S)
        for node, own in pids.items()
        if is_reachable(node)
    ]
    for task in tasks:
        _result(task)


def end_ranks(processes: Sequence[tuple[Node, int]]) -> None:
    """Kill ranks' processes, on nodes that can be reached; those of other nodes soon."""
    own = ray.get_runtime_context().get_node_id()
    for node, pid in processes:
        if node.node_id == own:
            end_processes([pid], 0.0)
        elif is_reachable(node):
            _start(node, end_processes, [pid], 0.0)


def _start(node: Node, function: Any, *arguments: Any) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    task = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
    return task.remote(*arguments)


def _result(task: Any) -> Any:
    """What a task gave; None: it didn't, in time."""
    try:
        return ray.get(task, timeout=_TASK_TIMEOUT_S)
    except RayError:  # GetTimeoutError is one of them
        return None


def end_processes(pids: Iterable[int], patience_s: float) -> list[int]:
    """Wait for ranks' processes on this node to end, and kill those that don't; their numbers."""
    left = [process for process in map(_rank_process, pids) if process is not None]
    _, left = psutil.wait_procs(left, timeout=patience_s)
    for process in left:
        process.send_signal(signal.SIGKILL)
    return [process.pid for process in left]


def _rank_process(pid: int) -> psutil.Process | None:
    """The process, if it is a Ray actor and not another one that has got its number since."""
    try:
        process = psutil.Process(pid)
        is_rank = "".join(process.cmdline()[:1]).startswith("ray::")
        return process if is_rank else None
    except psutil.Error:
        return None
