"""A rank with a GPU runs on the CPUs next to it: on a host of several NUMA nodes, memory and GPU of
another one are reached through a slower link."""

from __future__ import annotations

import os
from pathlib import Path

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def bind_to_gpu(root: Path = Path("/")) -> int | None:
    """Keep this process, and the threads that it will start, to the CPUs of its GPU's NUMA node.

    Returns the node's number; None where nothing was done: the process has not exactly one GPU, the
    host has one node or doesn't say, or none of the node's CPUs may be used.
    """
    node = _node_of_gpu(os.environ.get(_VISIBLE, ""), root)
    if node is None:
        return None
    try:
        near = cpu_numbers((root / f"sys/devices/system/node/node{node}/cpulist").read_text())
    except (OSError, ValueError):
        return None
    allowed = near & os.sched_getaffinity(0)
    if not allowed:
        return None
    os.sched_setaffinity(0, allowed)
    return node


def _node_of_gpu(visible: str, root: Path) -> int | None:
    """The NUMA node of the GPU that is visible, by its number in the order of PCI addresses."""
    gpus = sorted(path.name for path in (root / "proc/driver/nvidia/gpus").glob("*"))
    if not visible.isdecimal() or int(visible) >= len(gpus):
        return None
    place = root / "sys/bus/pci/devices" / gpus[int(visible)].lower() / "numa_node"
    try:
        node = int(place.read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None  # -1: one node, or the firmware doesn't say


def cpu_numbers(text: str) -> set[int]:
    """Such as `0-3,8`, as the kernel writes it."""
    spans = [part.split("-") for part in text.strip().split(",") if part]
    return {cpu for span in spans for cpu in range(int(span[0]), int(span[-1]) + 1)}
