"""From what hosts say of themselves to what is wrong, each with what mends it. Pure, no Ray."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from statistics import median

from tsarch.cluster.agreement import MAX_CLOCK_GAP_S
from tsarch.cluster.doctor_facts import Findings, HostFacts, RayFacts
from tsarch.errors import Mistake

LEAST_FREE_BYTES = 2_000_000_000
"""A checkpoint of a small pair, its weights, and room to spare."""
LEAST_SHM_BYTES = 256 * 2**20
"""The object store of a run's own Ray. Containers have 64 MB unless told otherwise."""
LEAST_FILES = 4096
"""Ray has some sockets open for every process of a node."""
LEAST_MEMORY_BYTES = 2_000_000_000
_UNWRITABLE = "can't be written"
"""How what is wrong with a folder begins, if it isn't that hosts don't share it."""
_SLOW_SHARE = 0.25
"""Of the usual rate between two hosts."""
_GB = 1e9


def symptoms(found: Findings) -> list[Mistake]:
    """All that is wrong; nothing on hosts that can train together."""
    hosts = found.hosts
    return [
        *_cluster(found.ray),
        *_versions(found),
        *_gpus(hosts),
        *_clocks(hosts),
        *_folders(hosts),
        *_disks(hosts),
        *_shared_memory(hosts),
        *_limits(hosts),
        *_ports(hosts),
        *_network(found),
    ]


def notes(found: Findings) -> list[str]:
    """What is no fault, but good to know."""
    lacking = sorted(
        {name for own in found.hosts for name, there in own.compilers.items() if not there}
    )
    told = [
        f"{name} is missing on some hosts; only what compiles kernels needs it" for name in lacking
    ]
    if len(found.hosts) > 1 and all(own.gpus and not own.interconnect for own in found.hosts):
        told.append("no InfiniBand, RoCE or EFA: GPUs of several hosts talk over TCP")
    ray = found.ray
    if ray is not None and not ray.asks_for_token and ray.is_loopback:
        told.append("the cluster asks for no token; it listens on loopback alone")
    return told


def _cluster(ray: RayFacts | None) -> Iterator[Mistake]:
    if ray is None:
        return
    where = f"cluster {ray.address}"
    if ray.refusal:
        yield Mistake(where, f"can't be joined: {ray.refusal}", "Start it: `ray start --head`.")
        return
    if not ray.asks_for_token and not ray.is_loopback:
        what = "asks for no token: whoever reaches it may run any code on its hosts."
        yield Mistake(where, what, "Start every node with RAY_AUTH_MODE=token.")
    if ray.asks_for_token and not ray.has_token:
        hint = "Put what `ray get-auth-token` on its head prints into ~/.ray/auth_token here."
        yield Mistake(where, "asks for a token, and none is here.", hint)
    elif not ray.accepts_token:
        hint = "Take that of its head: `ray get-auth-token` there prints it."
        yield Mistake(where, "doesn't accept the token that is here.", hint)
    for node in ray.silent:
        hint = f"Look at it: `ssh {node} ray status`, or start Ray there anew."
        yield Mistake(f"host {node}", "belongs to the cluster, but doesn't answer in time.", hint)


def _versions(found: Findings) -> Iterator[Mistake]:
    names = dict.fromkeys(name for own in found.hosts for name in own.versions)
    for name in names:
        expected = _public(found.here.versions.get(name, "missing"))
        others: dict[str, list[str]] = defaultdict(list)
        for own in found.hosts:
            version = _public(own.versions.get(name, "missing"))
            if version != expected:
                others[version].append(own.node)
        for version, nodes in others.items():
            what = f"is {version} on {_listed(nodes)}, and {expected} on {found.here.node}."
            hint = "Install the same on every host: `make install` with one constraints.txt."
            yield Mistake(f"versions: {name}", what, hint)


def _public(version: str) -> str:
    """Without what names a build, `+cu130`."""
    return version.partition("+")[0]


def _gpus(hosts: Iterable[HostFacts]) -> Iterator[Mistake]:
    for own in hosts:
        if own.driver_gpus > len(own.gpus):
            what = f"has {own.driver_gpus} GPUs, torch can use {len(own.gpus)} of them."
            hint = "Install torch's CUDA build there, and a driver that is new enough for it."
            yield Mistake(f"host {own.node}", what, hint)


def _clocks(hosts: Iterable[HostFacts]) -> Iterator[Mistake]:
    for own in hosts:
        gap_s = max(own.clock.low_s, -own.clock.high_s)
        if gap_s > MAX_CLOCK_GAP_S:
            what = f"its clock is {own.clock.middle_s:+.1f} s off."
            hint = "Let it keep the time: `timedatectl set-ntp true`, or chrony."
            yield Mistake(f"host {own.node}", what, hint)


def _folders(hosts: Iterable[HostFacts]) -> Iterator[Mistake]:
    for own in hosts:
        for folder, problem in own.folders.items():
            hint = "Mount one folder of all hosts there, or set run.folder to one that they share."
            if problem.startswith(_UNWRITABLE):
                hint = "Make it writable for this user, or set run.folder to another one."
            yield Mistake(f"folder {folder}", f"{problem} on {own.node}.", hint)


def _disks(hosts: Iterable[HostFacts]) -> Iterator[Mistake]:
    for own in hosts:
        for folder, free in own.free_bytes.items():
            if free < LEAST_FREE_BYTES and folder not in own.folders:
                what = f"{folder} has {free / _GB:.1f} GB free."
                hint = "Delete old runs and Ray's old sessions, or take a folder on another disk."
                yield Mistake(f"host {own.node}", what, hint)


def _shared_memory(hosts: Iterable[HostFacts]) -> Iterator[Mistake]:
    for own in hosts:
        if own.shm_bytes < LEAST_SHM_BYTES:
            what = f"/dev/shm has {own.shm_bytes / 2**20:.0f} MB."
            hint = (
                "Start its container with --shm-size=2g (Kubernetes: an emptyDir in memory there)."
            )
            yield Mistake(f"host {own.node}", what, hint)


def _limits(hosts: Iterable[HostFacts]) -> Iterator[Mistake]:
    for own in hosts:
        where = f"host {own.node}"
        if own.open_files < LEAST_FILES:
            what = f"a process may have {own.open_files} files open."
            yield Mistake(where, what, "Raise it before Ray starts: `ulimit -n 65536`.")
        if own.memory_bytes < LEAST_MEMORY_BYTES:
            limited = own.memory_bytes < own.machine_memory_bytes
            who = "its control group" if limited else "it"
            what = f"{who} has {own.memory_bytes / _GB:.1f} GB of memory."
            hint = "Give the container more memory (--memory, resources.limits.memory)."
            yield Mistake(where, what, hint)
        if own.cpus < 1:
            what = f"its control group has {own.cpus:g} CPUs."
            yield Mistake(where, what, "Give the container a CPU at least (--cpus).")


def _ports(hosts: Iterable[HostFacts]) -> Iterator[Mistake]:
    for own in hosts:
        for target, why in own.unreachable.items():
            what = f"can't connect to {target}: {why}."
            hint = "Let the hosts reach one another on all ports (security group, firewall)."
            yield Mistake(f"host {own.node}", what, hint)


def _network(found: Findings) -> Iterator[Mistake]:
    if found.network_error:
        hint = "Let the hosts reach one another on all ports (security group, firewall)."
        yield Mistake("network", f"the hosts can't compute together: {found.network_error}", hint)
    if found.rates is None or len(found.rates.links) < 3:
        return
    usual = median(found.rates.links.values())
    for (source, target), rate in found.rates.links.items():
        if rate < _SLOW_SHARE * usual:
            what = f"{rate / 1e6:,.0f} MB/s, where others have {usual / 1e6:,.0f}."
            hint = "Look at that cable, card or subnet; ranks wait for the slowest."
            yield Mistake(f"link {source} → {target}", what, hint)


def _listed(nodes: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(nodes))
