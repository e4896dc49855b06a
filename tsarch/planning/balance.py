"""The choice of `topology: auto`: from measured times to replica or thread counts. Pure, no torch.

What a count of replicas or threads would cost is a table of times for each stage (`with_replicas`,
`with_threads`); `choose` looks for the pair of counts whose step is the fastest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

from tsarch.rank.supply import Supply
from tsarch.topology import STAGES, Stage

Way = Literal["sequential", "overlapped", "joint", "one_process"]
Unit = Literal["replicas", "threads"]

TOLERANCE = 0.05
"""Replicas: a step this much slower than the fastest is as good, if it takes fewer devices;
measured times are no more exact than that."""


@dataclass(frozen=True)
class StageTimes:
    """Seconds that a rank of a stage works on one step, waiting and the link left out."""

    compute_s: float
    """Forward and backward passes."""
    step_s: float
    """The engine's optimizer step."""
    exchange_s: float
    """One exchange of the tied table: its gradient's sum and its update, on every rank."""

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.compute_s + self.step_s + self.exchange_s


ByStage = Mapping[Stage, StageTimes]


@dataclass(frozen=True)
class Prediction:
    """What a pair of counts would give."""

    counts: dict[Stage, int]
    """Replicas, or threads, of each stage."""
    step_s: float
    """Seconds from step to step."""
    busy_share: dict[Stage, float]
    """Share of it in which a rank of the stage works."""
    idle_share: float
    """Share of it in which a rank of any stage waits, averaged over ranks."""

    def as_json(self) -> dict[str, Any]:
        """For `summary.json`."""
        return {
            **{stage.value: count for stage, count in self.counts.items()},
            "step_s": self.step_s,
            "busy_share": {stage.value: share for stage, share in self.busy_share.items()},
            "idle_share": self.idle_share,
        }


@dataclass(frozen=True)
class Proposal:
    """What was measured, what is proposed, and what it is compared with."""

    unit: Unit
    """What the counts are of."""
    supply: Supply
    measured: dict[int, ByStage]
    """Threads of a rank → times of both stages with them. 0: threads were not looked at."""
    chosen: Prediction
    plain: Prediction
    """Without `auto`: one replica each; of threads, half of the cores each."""

    @property
    def replicas(self) -> dict[Stage, int]:
        """Replicas of each stage."""
        return self.chosen.counts if self.unit == "replicas" else dict.fromkeys(STAGES, 1)

    def as_json(self) -> dict[str, Any]:
        """For `summary.json`."""
        return {
            "unit": self.unit,
            "supply": asdict(self.supply),
            "measured": [
                {"threads": threads or None, **{s.value: asdict(t) for s, t in times.items()}}
                for threads, times in self.measured.items()
            ],
            "chosen": self.chosen.as_json(),
            "plain": self.plain.as_json(),
        }


def with_replicas(
    one: StageTimes, shares: Sequence[float], shards_step: bool
) -> tuple[StageTimes, ...]:
    """Times of the busiest of 1, 2, … replicas.

    Args:
        one: times of one replica.
        shares: share of the batch that the busiest of 1, 2, … replicas works on.
        shards_step: whether replicas share the optimizer step out (ZeRO 1 and above).

    What replicas exchange among themselves (gradients; under ZeRO 3 weights too) can't be seen
    with one replica and is left out.
    """
    return tuple(
        StageTimes(
            one.compute_s * share, one.step_s / count if shards_step else one.step_s, one.exchange_s
        )
        for count, share in enumerate(shares, start=1)
    )


def with_threads(one: StageTimes, many: StageTimes, num_threads: int) -> tuple[StageTimes, ...]:
    """Times with 1, 2, …, `num_threads` threads, from those with one and with all of them.

    Each part is taken to be a serial share and one that threads divide (Amdahl 1967).
    """

    def times(threads: int) -> StageTimes:
        return StageTimes(
            _amdahl(one.compute_s, many.compute_s, num_threads, threads),
            _amdahl(one.step_s, many.step_s, num_threads, threads),
            _amdahl(one.exchange_s, many.exchange_s, num_threads, threads),
        )

    return tuple(times(threads) for threads in range(1, num_threads + 1))


def _amdahl(one_s: float, many_s: float, num_threads: int, threads: int) -> float:
    if num_threads == 1:
        return one_s
    parallel_s = (one_s - many_s) / (1.0 - 1.0 / num_threads)
    parallel_s = min(max(parallel_s, 0.0), one_s)
    return one_s - parallel_s * (1.0 - 1.0 / threads)


def step_seconds(
    way: Way, num_micro_batches: int, teacher: StageTimes, student: StageTimes
) -> float:
    """Seconds from step to step, of the busiest ranks of both stages.

    `sequential`: one after the other, and both take part in both exchanges of the table.
    `overlapped`: as long as the slower one. `joint`: the slower one, and the first and last
    micro-batch of the other one, during which it waits.
    """
    if way == "one_process":
        return teacher.total_s + student.total_s
    if way == "sequential":
        exchanges_s = 2.0 * max(teacher.exchange_s, student.exchange_s)
        return sum(t.compute_s + t.step_s for t in (teacher, student)) + exchanges_s
    slower_s = max(teacher.total_s, student.total_s)
    if way == "overlapped":
        return slower_s
    return slower_s + min(teacher.compute_s, student.compute_s) / num_micro_batches


def predict(
    way: Way,
    num_micro_batches: int,
    options: Mapping[Stage, Sequence[StageTimes]],
    counts: Mapping[Stage, int],
    unit: Unit,
) -> Prediction:
    """What a pair of counts gives; `options[stage][n − 1]` are the stage's times with n."""
    times = {stage: options[stage][counts[stage] - 1] for stage in STAGES}
    step_s = step_seconds(way, num_micro_batches, times[Stage.TEACHER], times[Stage.STUDENT])
    exchanges = 2 if way == "sequential" else 1
    work_s = {s: t.total_s + (exchanges - 1) * t.exchange_s for s, t in times.items()}
    busy = {stage: own_s / step_s if step_s > 0 else 1.0 for stage, own_s in work_s.items()}
    ranks = dict(counts) if unit == "replicas" else dict.fromkeys(STAGES, 1)
    num_ranks = 1 if way == "one_process" else sum(ranks.values())
    idle = 1.0 - sum(ranks[stage] * busy[stage] for stage in STAGES) / num_ranks
    return Prediction(dict(counts), step_s, busy, max(idle, 0.0))


def choose(
    way: Way,
    num_micro_batches: int,
    options: Mapping[Stage, Sequence[StageTimes]],
    budget: int,
    unit: Unit,
) -> Prediction:
    """The pair of counts, at most `budget` in all, whose step is the fastest.

    Of pairs as good as it (of replicas: within `TOLERANCE`) the one with the lowest sum, then the
    fastest. 1:1 is always among the pairs, and never better than what is chosen.
    """
    pairs = product(*(range(1, len(options[stage]) + 1) for stage in STAGES))
    candidates = [
        predict(way, num_micro_batches, options, dict(zip(STAGES, pair, strict=True)), unit)
        for pair in pairs
        if sum(pair) <= max(budget, len(STAGES))
    ]
    fastest_s = min(candidate.step_s for candidate in candidates)
    limit_s = fastest_s * (1.0 + TOLERANCE) if unit == "replicas" else fastest_s
    good = [c for c in candidates if c.step_s <= limit_s]
    return min(good, key=lambda c: (sum(c.counts.values()), c.step_s))
