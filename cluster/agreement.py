"""Whether the ranks of a run can work together: what each says of itself, compared. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from tsarch.errors import Mistake
from tsarch.topology import Stage

if TYPE_CHECKING:
    from tsarch.planning.capacity import RankNeed

MAX_CLOCK_GAP_S = 2.0
NO_GPU = "no GPU"
"""Device of a rank that should have a GPU."""
_GB = 1e9
_INSTALL = "Install the same on every node: `make install` with one constraints.txt, the same code."
_SAME_PATH = "Put it under the same path on every node, or into a folder that all of them share."


@dataclass(frozen=True)
class Facts:
    """What a process says of itself and its host."""

    node: str
    """Address of its node."""
    versions: Mapping[str, str]
    """Of Python, of the libraries that must agree, and a hash of tsarch's own files; on GPUs of
    CUDA and NCCL too."""
    device: str
    """`cpu`, `cuda` or `NO_GPU`."""
    device_name: str
    """The GPU's model; empty for a CPU."""
    free_host_bytes: int
    free_device_bytes: int | None = None
    """Of its GPU."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """Shared folder → what is wrong with it here; only folders that something is wrong with."""
    sizes: Mapping[str, int | None] = field(default_factory=dict)
    """File or model that every rank reads → bytes; None: can't be read."""
    gpu_ids: tuple[str, ...] = ()
    """Numbers of its GPUs on the node."""
    niceness: int = 0
    """The lower, the more of a busy host it gets."""


@dataclass(frozen=True)
class Clock:
    """Seconds that a clock is ahead of the driver's: at least and at most, by what a round trip
    leaves open."""

    low_s: float = 0.0
    high_s: float = 0.0

    @property
    def middle_s(self) -> float:
        """The likeliest value."""
        return (self.low_s + self.high_s) / 2


@dataclass(frozen=True)
class RankFacts:
    """What is known of a rank."""

    rank: int
    stage: Stage
    facts: Facts
    clock: Clock = Clock()


def disagreements(
    ranks: Sequence[RankFacts], driver: Facts, needs: Mapping[Stage, RankNeed]
) -> list[Mistake]:
    """Everything that keeps the ranks from working together, at once.

    Args:
        needs: memory of a rank of each stage; none: it isn't checked.
    """
    return [
        *_versions(ranks, driver),
        *_devices(ranks),
        *_clocks(ranks, driver.node),
        *_folders(ranks),
        *_files(ranks, driver),
        *_host_memory(ranks, needs),
        *_device_memory(ranks, needs),
    ]


def _versions(ranks: Sequence[RankFacts], driver: Facts) -> Iterator[Mistake]:
    names = dict.fromkeys(name for own in ranks for name in own.facts.versions)
    for name in names:
        told = _grouped((own, own.facts.versions.get(name, "missing")) for own in ranks)
        expected = driver.versions.get(name)
        differs = expected is not None and _public(expected) not in map(_public, told)
        if len(told) > 1 or differs:
            parts = [f"{value} on {who}" for value, who in told.items()]
            if expected is not None:
                parts.insert(0, f"{expected} on the driver ({driver.node})")
            yield Mistake(f"versions: {name}", f"is {'; '.join(parts)}.", _INSTALL)


def _public(version: str) -> str:
    """A version without what names its build, `+cu130`: the driver needs no GPU."""
    return version.partition("+")[0]


def _devices(ranks: Sequence[RankFacts]) -> Iterator[Mistake]:
    kinds = _grouped((own, own.facts.device) for own in ranks)
    if NO_GPU in kinds:
        hint = "Install torch's CUDA build there, or start Ray there with the GPUs that it has."
        yield Mistake("topology.device: cuda", f"torch sees no GPU on {kinds[NO_GPU]}.", hint)
    elif len(kinds) > 1:
        parts = "; ".join(f"{kind} on {who}" for kind, who in kinds.items())
        hint = "All ranks must compute on GPUs, or all on CPUs: set topology.device."
        yield Mistake("topology.device", f"is {parts}.", hint)
    for stage in dict.fromkeys(own.stage for own in ranks):
        names = _grouped((own, own.facts.device_name) for own in ranks if own.stage is stage)
        if len(names) > 1 and len(kinds) == 1:
            parts = "; ".join(f"{name} on {who}" for name, who in names.items())
            hint = "A stage's ranks wait for the slowest at each step: give them equal GPUs."
            yield Mistake(f"topology.{stage}", f"its ranks have different GPUs: {parts}.", hint)


def _clocks(ranks: Sequence[RankFacts], driver_node: str) -> Iterator[Mistake]:
    clocks = {own.facts.node: own.clock for own in ranks} | {driver_node: Clock()}
    gap_s = max(c.low_s for c in clocks.values()) - min(c.high_s for c in clocks.values())
    if gap_s > MAX_CLOCK_GAP_S:
        parts = [
            f"node {node} {clock.middle_s:+.1f} s"
            for node, clock in sorted(clocks.items(), key=lambda own: own[1].middle_s)
        ]
        yield Mistake(
            "clocks",
            f"are {gap_s:.1f} s apart (against the driver's: {', '.join(parts)}).",
            "Let all nodes keep the time (chrony, systemd-timesyncd).",
        )


def _folders(ranks: Sequence[RankFacts]) -> Iterator[Mistake]:
    for folder in dict.fromkeys(folder for own in ranks for folder in own.facts.folders):
        problems = _grouped(
            (own, own.facts.folders[folder]) for own in ranks if folder in own.facts.folders
        )
        for problem, who in problems.items():
            yield Mistake(
                f"shared folder: {folder}",
                f"{problem} on {who}.",
                "Weights and checkpoints must be readable by all: set run.folder (and "
                "checkpoint.folder) to a folder that all nodes share under one path.",
            )


def _files(ranks: Sequence[RankFacts], driver: Facts) -> Iterator[Mistake]:
    for path, expected in driver.sizes.items():
        lacking = [own for own in ranks if own.facts.sizes.get(path) is None]
        if lacking:
            yield Mistake(path, f"can't be read on {_who(lacking)}.", _SAME_PATH)
        others = _grouped(
            (own, f"{own.facts.sizes[path]:,} bytes")
            for own in ranks
            if own not in lacking and own.facts.sizes[path] != expected
        )
        if others:
            parts = "; ".join(f"{size} on {who}" for size, who in others.items())
            what = f"has {expected or 0:,} bytes on the driver ({driver.node}), but {parts}."
            yield Mistake(path, what, _SAME_PATH)


def _host_memory(ranks: Sequence[RankFacts], needs: Mapping[Stage, RankNeed]) -> Iterator[Mistake]:
    nodes: dict[str, list[RankFacts]] = defaultdict(list)
    for own in ranks if needs else ():
        nodes[own.facts.node].append(own)
    for node, here in nodes.items():
        needed = sum(needs[own.stage].on_host(own.facts.device) for own in here)
        needed += _for_other_nodes(node, nodes, needs)
        free = min(own.facts.free_host_bytes for own in here)
        if needed > free:
            yield Mistake(
                "memory",
                f"{_who(here)} need {needed / _GB:,.1f} GB of host memory for states and the "
                f"copies that checkpoints are written from, {free / _GB:,.1f} GB are free there.",
                "Use fewer ranks a node, nodes with more memory, zero_stage 3, or no cuts in "
                "memory (`checkpoint.in_memory_every_steps: null`).",
            )


def _for_other_nodes(
    node: str, nodes: Mapping[str, Sequence[RankFacts]], needs: Mapping[Stage, RankNeed]
) -> int:
    """Bytes that make up for the loss of a node, if ranks keep cuts in memory: one more of each
    rank here, and two of each rank of another node."""
    cuts = {
        name: sum(needs[own.stage].one_copy for own in ranks if needs[own.stage].in_turn > 1)
        for name, ranks in nodes.items()
    }
    own = cuts.pop(node)
    return own + 2 * max(cuts.values()) if cuts else 0


def _device_memory(
    ranks: Sequence[RankFacts], needs: Mapping[Stage, RankNeed]
) -> Iterator[Mistake]:
    for own in ranks if needs else ():
        free, needed = own.facts.free_device_bytes, needs[own.stage].on_gpu
        if free is not None and needed > free:
            yield Mistake(
                "memory",
                f"{_who([own])}, a {own.stage}, needs {needed / _GB:,.1f} GB of its GPU for "
                f"states, {free / _GB:,.1f} GB are free there.",
                "End what else uses the GPU, or use zero_stage 3, offloading or bf16.",
            )


def _grouped(values: Iterable[tuple[RankFacts, str]]) -> dict[str, str]:
    """Value → who has it, the commonest first."""
    groups: dict[str, list[RankFacts]] = defaultdict(list)
    for own, value in values:
        groups[value].append(own)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return {value: _who(group) for value, group in ordered}


def _who(ranks: Sequence[RankFacts]) -> str:
    """`node 10.0.0.1 (ranks 0–2), node 10.0.0.2 (rank 3)`."""
    nodes: dict[str, list[int]] = defaultdict(list)
    for own in ranks:
        nodes[own.facts.node].append(own.rank)
    return ", ".join(f"node {node} ({_numbers(own)})" for node, own in nodes.items())


def _numbers(ranks: list[int]) -> str:
    """`rank 3`, `ranks 0–2, 5`."""
    ranks = sorted(ranks)
    starts = [ranks[0], *(b for a, b in pairwise(ranks) if b != a + 1)]
    stops = [*(a for a, b in pairwise(ranks) if b != a + 1), ranks[-1]]
    spans = [str(a) if a == b else f"{a}–{b}" for a, b in zip(starts, stops, strict=True)]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(spans)}"
