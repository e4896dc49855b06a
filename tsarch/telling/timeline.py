"""The timeline of a traced run: a representative stretch of it, as blocks in lanes. Pure.

A lane is a rank, teacher lanes come first. A block is an instruction; the part of it in which the
rank waited for others is a block of its own. Where a lane has no block, the rank is idle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tsarch.telling.trace import Event
from tsarch.topology import Topology

Kind = Literal["forward", "backward", "step", "link", "tied", "wait"]

MAX_LANES = 32
MAX_BLOCKS = 2_500
_MAX_TICKS = 4
_INSTRUCTIONS_OF_A_LANE = 60

Place = tuple[int, int]
"""(stage's place in the topology, replica)."""
Tick = tuple[int, int]
"""(epoch, tick): a tick's number alone comes twice where one epoch ends and the next starts."""


@dataclass(frozen=True)
class Block:
    """What a rank does in a part of the stretch."""

    lane: int
    kind: Kind
    start_ms: float
    """Since the start of the stretch."""
    end_ms: float
    label: str
    """Number of the step or micro-batch; empty where there is none."""


@dataclass(frozen=True)
class Timeline:
    """A stretch of a run."""

    lanes: tuple[str, ...]
    """Names, from top to bottom."""
    num_teacher_lanes: int
    blocks: tuple[Block, ...]
    duration_ms: float
    steps: tuple[int, int]
    """First and last step that the stretch works on."""
    numbers: Literal["step", "micro-batch"]
    """What the labels count."""
    idle_share: float
    """Of all ranks in the stretch, those without a lane included."""
    num_hidden_lanes: int
    """Ranks that have no lane, because there are too many."""
    is_cut: bool
    """Whether the stretch ends early, because it has too many instructions."""


def make_timeline(
    events: Sequence[Event], topology: Topology, single_step: bool, partial: bool = False
) -> Timeline:
    """The stretch of median length among those in the middle of `events` (a run's trace).

    Args:
        single_step: one step; else as many (up to four) as stay readable.
        partial: the events are cut out of a longer trace, the first and last ticks incomplete.
    """
    ticks = _stretch(events, single_step, partial)
    chosen = [e for e in events if _tick(e) in ticks and e["cat"] != "wait"]
    start_us = min(e["ts"] for e in chosen)
    end_us = max(e["ts"] + e["dur"] for e in chosen)
    inside = [e for e in events if e["ts"] < end_us and e["ts"] + e["dur"] > start_us]
    lanes = _lanes(topology)
    drawn = sorted((e for e in inside if _place(e) in lanes), key=lambda e: float(e["ts"]))
    is_cut = len(drawn) > MAX_BLOCKS
    if is_cut:
        end_us = drawn[MAX_BLOCKS]["ts"]
        drawn = drawn[:MAX_BLOCKS]
    micro_batches = any(e["args"].get("micro_batch", 0) > 0 for e in chosen)
    steps = [e["args"]["step"] for e in chosen if "step" in e["args"]]
    return Timeline(
        tuple(f"{topology.stages[stage]} {replica}" for stage, replica in lanes),
        sum(stage == 0 for stage, _ in lanes),
        tuple(_blocks(drawn, lanes, start_us, end_us, micro_batches)),
        (end_us - start_us) / 1e3,
        (min(steps), max(steps)),
        "micro-batch" if micro_batches else "step",
        _idle_share(inside, start_us, end_us, topology.num_ranks),
        topology.num_ranks - len(lanes),
        is_cut,
    )


def _stretch(events: Sequence[Event], single_step: bool, partial: bool) -> set[Tick]:
    """Consecutive ticks of one epoch whose time is the median of all such in the middle half."""
    bounds: dict[Tick, tuple[float, float]] = {}
    for event in events:
        start_us, end_us = event["ts"], event["ts"] + event["dur"]
        first_us, last_us = bounds.get(_tick(event), (start_us, end_us))
        bounds[_tick(event)] = (min(first_us, start_us), max(last_us, end_us))
    ticks = sorted(bounds)
    if partial and len(ticks) > 2:
        ticks = ticks[1:-1]
    length = 1 if single_step else _num_ticks(events, len(ticks))
    runs = [ticks[i : i + length] for i in range(len(ticks) - length + 1)]
    whole = [run for run in runs if run[0][0] == run[-1][0]] or [ticks[:1]]
    middle = whole[len(whole) // 4 : len(whole) - len(whole) // 4]
    by_time = sorted(middle, key=lambda run: bounds[run[-1]][1] - bounds[run[0]][0])
    return set(by_time[len(by_time) // 2])


def _num_ticks(events: Iterable[Event], num_there: int) -> int:
    """As many ticks as stay readable: by the busiest lane's instructions in a tick."""
    counts = Counter(_place(e) for e in events if e["cat"] != "wait")
    instructions = max(counts.values()) / num_there
    return max(1, min(_MAX_TICKS, num_there, int(_INSTRUCTIONS_OF_A_LANE / instructions)))


def _lanes(topology: Topology) -> dict[Place, int]:
    """Places → lanes: the first replicas of each stage, in proportion where not all fit."""
    counts = list(topology.counts)
    if topology.num_ranks > MAX_LANES:
        share = round(MAX_LANES * counts[0] / topology.num_ranks)
        others = len(counts) - 1
        counts[0] = min(max(share, 1), MAX_LANES - others, counts[0])
        for stage in range(1, len(counts)):
            room = MAX_LANES - sum(counts[:stage]) - (others - stage)
            counts[stage] = min(room, counts[stage])
    places = [(stage, r) for stage, count in enumerate(counts) for r in range(count)]
    return {place: lane for lane, place in enumerate(places)}


def _blocks(
    events: Iterable[Event],
    lanes: dict[Place, int],
    start_us: float,
    end_us: float,
    micro_batches: bool,
) -> Iterable[Block]:
    number = "micro_batch" if micro_batches else "step"
    for event in events:
        first_us = max(event["ts"], start_us)
        last_us = min(event["ts"] + event["dur"], end_us)
        label = str(event["args"].get(number, "")) if event["cat"] == "compute" else ""
        start_ms, end_ms = (first_us - start_us) / 1e3, (last_us - start_us) / 1e3
        yield Block(lanes[_place(event)], _kind(event), start_ms, end_ms, label)


def _kind(event: Event) -> Kind:
    if event["cat"] == "compute":
        return "forward" if event["name"] == "Forward" else "backward"
    kinds: dict[str, Kind] = {"step": "step", "link": "link", "tied": "tied", "wait": "wait"}
    return kinds[event["cat"]]


def _idle_share(events: Iterable[Event], start_us: float, end_us: float, num_ranks: int) -> float:
    """Share of the window in which the ranks don't work."""
    worked_us = 0.0
    for event in events:
        inside_us = min(event["ts"] + event["dur"], end_us) - max(event["ts"], start_us)
        worked_us += max(inside_us, 0.0) * (-1 if event["cat"] == "wait" else 1)
    return float(1.0 - worked_us / ((end_us - start_us) * num_ranks))


def _place(event: Event) -> Place:
    return event["pid"], event["tid"]


def _tick(event: Event) -> Tick:
    return event["args"]["epoch"], event["args"]["tick"]
