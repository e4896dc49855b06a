"""What a host says of itself to `tsarch doctor`: frozen values, to think faults up in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tsarch.cluster.agreement import Clock


@dataclass(frozen=True)
class HostFacts:
    """One host."""

    node: str
    """Its address."""
    versions: Mapping[str, str]
    """Of Python, of libraries, and a hash of tsarch's own files."""
    cpus: float
    """That processes here may use, by a limit of their control group too."""
    memory_bytes: int
    """The same of memory."""
    machine_memory_bytes: int
    gpus: tuple[str, ...] = ()
    """Names of those that torch can use."""
    driver_gpus: int = 0
    """Devices of a driver (`/dev/nvidia0`, …), whether torch can use them or not."""
    compilers: Mapping[str, bool] = field(default_factory=dict)
    """Name (`g++`, `ninja`) → whether it is there."""
    interconnect: tuple[str, ...] = ()
    """Fast network cards (InfiniBand, RoCE, EFA) that the kernel knows."""
    free_bytes: Mapping[str, int] = field(default_factory=dict)
    """Folder → bytes free: for runs, and for temporary files."""
    shm_bytes: int = 1 << 40
    """Size of /dev/shm."""
    open_files: int = 1 << 20
    """Files that a process may have open."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """Shared folder → what is wrong with it here."""
    unreachable: Mapping[str, str] = field(default_factory=dict)
    """Address that processes of this host can't connect to → why."""
    clock: Clock = field(default_factory=Clock)
    """Against the host that asks."""


@dataclass(frozen=True)
class RayFacts:
    """The cluster, as the host that asks sees it."""

    address: str
    asks_for_token: bool = True
    has_token: bool = True
    accepts_token: bool = True
    is_loopback: bool = False
    silent: tuple[str, ...] = ()
    """Nodes that didn't answer in time."""
    refusal: str = ""
    """Why it can't be joined."""


@dataclass(frozen=True)
class Rates:
    """What the network carries, in bytes a second."""

    links: Mapping[tuple[str, str], float]
    """From one host to another."""
    collective: float
    """Sum over all hosts: bytes summed over seconds."""
    seconds: float
    """That the test took."""


@dataclass(frozen=True)
class Findings:
    """All that a doctor looks at."""

    here: HostFacts
    """The host that asks."""
    hosts: tuple[HostFacts, ...]
    """All hosts of the cluster, or `here` alone."""
    ray: RayFacts | None = None
    """None: no cluster is looked at."""
    rates: Rates | None = None
    """None: there is one host, or the test failed (`network_error`)."""
    network_error: str = ""
