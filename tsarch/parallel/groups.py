"""The one file that makes process groups: a world per stage, and groups across both stages.

A stage's world is what DeepSpeed sees: an ordinary data-parallel job. The groups across stages
(link, tied embedding) come from torch's experimental `_dist2`, wrapped here alone, each with a
store of its own, so that no group's messages can be reordered against another's.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch
from torch.distributed import TCPStore, _dist2  # type: ignore[attr-defined]

ProcessGroup = Any


@dataclass(frozen=True)
class Address:
    """Where a group's ranks meet: a `MeetingPoint`'s."""

    host: str
    port: int


def backend_for(device: torch.device) -> str:
    """Communication backend of a device: nccl on GPUs, gloo elsewhere."""
    return "nccl" if device.type == "cuda" else "gloo"


def choose_device(name: str) -> torch.device:
    """Device of this process: `auto` takes the GPU that is visible to it, else the CPU."""
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", 0)
    return torch.device("cpu")


class MeetingPoint:
    """The server of the store that a group's ranks meet in; one for each group, for as long as the
    group lives. It listens from now on, at one address of this host alone (torch's own would at
    all), on a port that nobody else can take meanwhile."""

    def __init__(self, host: str) -> None:
        listener = socket.create_server((host, 0))
        self.address = Address(host, int(listener.getsockname()[1]))
        self._store = TCPStore(
            host,
            self.address.port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )


def use_interface_of(host: str) -> None:
    """Make gloo and nccl use the network interface that has the address `host`; with several, nccl
    might take one that leads nowhere, such as Docker's. What the user has set for nccl stays."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == host for address in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # exactly this name


def set_stage_environment(address: Address, stage_rank: int, replicas: int) -> None:
    """Tell torch and DeepSpeed this process's place in its stage's world, for good.

    `LOCAL_RANK` is 0: a rank sees one device only.
    """
    os.environ.update(_environment(address, stage_rank, replicas), LOCAL_RANK="0")


def new_cross_group(
    address: Address, rank: int, num_ranks: int, device: torch.device, timeout_s: float
) -> ProcessGroup:
    """A process group over all ranks of both stages. Every rank calls it, in the same order."""
    with _temporary_environment(_environment(address, rank, num_ranks)):
        return _dist2.new_group(backend_for(device), timedelta(seconds=timeout_s), device)


def new_sequence_group(size: int, timeout_s: float) -> ProcessGroup:
    """This rank's group of those neighbours in its stage's world that share contexts. Every rank of
    the stage calls it, in the same order."""
    timeout = timedelta(seconds=timeout_s)
    group, _ = torch.distributed.new_subgroups(size, timeout=timeout)  # type: ignore[no-untyped-call]
    return group


def abort_across(groups: Iterable[ProcessGroup], device: torch.device) -> None:
    """Let whatever waits in some groups fail. (Those of gloo do when their `Sockets` are cut.)"""
    if backend_for(device) == "nccl":
        for group in groups:
            group.abort()


def abort_stage(device: torch.device) -> None:
    """The same for the stage's world and all groups in it."""
    if backend_for(device) == "nccl":
        torch.distributed.distributed_c10d._abort_process_group()


def _environment(address: Address, rank: int, world_size: int) -> dict[str, str]:
    return {
        "MASTER_ADDR": address.host,
        "MASTER_PORT": str(address.port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        # No rank starts a server by itself: there is a `MeetingPoint`.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


@contextmanager
def _temporary_environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
