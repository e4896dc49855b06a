"""What a side of the speed benchmark measures, and the pure arithmetic on it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CORES = 2
"""Cores that every side may use: two ranks of one thread, or one process of two threads."""


@dataclass(frozen=True)
class SideRun:
    """One repeat of one side."""

    side: str
    num_steps: int
    """Optimizer steps of a model in the timed part."""
    num_tokens: int
    """Real (non-padding) training tokens; a token that both models read counts once."""
    teacher_positions: int
    """Positions that the teacher computed, padding included."""
    student_positions: int
    wall_s: float
    core_s: float
    """Core-seconds of work, waiting for other ranks left out. tsarch's ranks report their busy
    seconds, ranks of others their CPU seconds; one process of two threads counts as two cores."""
    stage_busy_s: dict[str, float] = field(default_factory=dict)
    """Busy seconds of each stage, where the stages have ranks of their own."""
    losses: list[float] = field(default_factory=list)
    """ℓ_T + ℓ_S of each timed step, of the sides whose losses are comparable: means over the
    step's labelled words on one table."""

    @property
    def tokens_per_s(self) -> float:
        """The figure of the benchmark."""
        return self.num_tokens / self.wall_s

    @property
    def step_s(self) -> float:
        """Wall seconds of an optimizer step."""
        return self.wall_s / self.num_steps

    @property
    def padded_share(self) -> float:
        """Share of all computed positions that are no real token. Windows leave out tokens that
        only contexts have: without padding there are fewer positions than tokens for both."""
        return max(1.0 - 2 * self.num_tokens / self._num_positions, 0.0)

    @property
    def busy_cores(self) -> float:
        """Cores at work, on average."""
        return self.core_s / self.wall_s

    @property
    def idle_share(self) -> float:
        """Share of the two cores' time in which a rank waited."""
        return max(1.0 - self.busy_cores / CORES, 0.0)

    @property
    def positions_per_core_s(self) -> float:
        """Positions computed in a core-second of work: forward, backward and optimizer."""
        return self._num_positions / self.core_s

    @property
    def _num_positions(self) -> int:
        return self.teacher_positions + self.student_positions


@dataclass(frozen=True)
class SideFailure:
    """A side that did not finish."""

    side: str
    error: str
    """The end of what it printed."""


def write_runs(runs: Sequence[SideRun], output: Path) -> None:
    """Write what a side's process measured, for the driver."""
    output.write_text(json.dumps([asdict(run) for run in runs], indent=2) + "\n", encoding="utf-8")


def read_runs(path: Path) -> list[SideRun]:
    """Read what `write_runs` wrote."""
    return [SideRun(**values) for values in json.loads(path.read_text(encoding="utf-8"))]


def median_of(runs: Sequence[SideRun], value: Callable[[SideRun], float]) -> float:
    """Median of a figure over the repeats of a side."""
    return statistics.median(value(run) for run in runs)


def factors(run: SideRun, reference: SideRun) -> dict[str, float]:
    """`run`'s speed over `reference`'s as a product of three measured ratios.

    tokens/s = (cores at work) × (positions per core-second) × (tokens per position).
    """
    return {
        "cores": run.busy_cores / reference.busy_cores,
        "work": run.positions_per_core_s / reference.positions_per_core_s,
        "padding": (1.0 - run.padded_share) / (1.0 - reference.padded_share),
    }


def summarise(
    turns: Sequence[Mapping[str, SideRun | SideFailure]],
    reference: str,
    peak_s_per_token: Sequence[float],
) -> dict[str, dict[str, Any]]:
    """Medians of every side over the turns, and of its ratios to `reference` in the same turn.

    A side that failed in any turn has only its error.

    Args:
        peak_s_per_token: of each turn, seconds that the products of a real token would take if the
            machine did nothing but products.
    """
    summary: dict[str, dict[str, Any]] = {}
    for side in turns[0]:
        found = [turn[side] for turn in turns]
        failures = [f for f in found if isinstance(f, SideFailure)]
        if failures:
            summary[side] = {"error": failures[0].error}
            continue
        runs = [run for run in found if isinstance(run, SideRun)]
        others = [turn[reference] for turn in turns]
        pairs = [(r, o) for r, o in zip(runs, others, strict=True) if isinstance(o, SideRun)]
        shares = [r.tokens_per_s * s for r, s in zip(runs, peak_s_per_token, strict=True)]
        peak = {"peak_share": statistics.median(shares)}
        summary[side] = _medians(runs) | _ratios(pairs) | peak
    return summary


def _medians(runs: Sequence[SideRun]) -> dict[str, Any]:
    first = runs[0]
    return {
        "tokens_per_s": median_of(runs, lambda r: r.tokens_per_s),
        "step_s": median_of(runs, lambda r: r.step_s),
        "tokens_per_step": first.num_tokens / first.num_steps,
        "padded_share": median_of(runs, lambda r: r.padded_share),
        "idle_share": median_of(runs, lambda r: r.idle_share),
        "positions_per_core_s": median_of(runs, lambda r: r.positions_per_core_s),
        "busy_share": {
            stage: statistics.median(r.stage_busy_s[stage] / r.wall_s for r in runs)
            for stage in first.stage_busy_s
        },
        "busy_s_per_step": {
            stage: statistics.median(r.stage_busy_s[stage] / r.num_steps for r in runs)
            for stage in first.stage_busy_s
        },
        "repeats": [asdict(run) for run in runs],
    }


def _ratios(pairs: Sequence[tuple[SideRun, SideRun]]) -> dict[str, Any]:
    if not pairs:
        return {}
    ratios = [run.tokens_per_s / other.tokens_per_s for run, other in pairs]
    parts = [factors(run, other) for run, other in pairs]
    return {
        "speed_ratio": statistics.median(ratios),
        "factors": {name: statistics.median(p[name] for p in parts) for name in parts[0]},
    }


def pipeline_figures(
    summary: Mapping[str, Mapping[str, Any]], micro_batches: int
) -> dict[str, float]:
    """How near tsarch's schedules come to what the stages' own times allow.

    The stages' own times are those of `sequential`, in which only one of them works at a time.
    Empty if one of the three schedules is missing.
    """
    if not all("busy_s_per_step" in summary.get(n, {}) for n in _SCHEDULES):
        return {}
    sequential, overlapped, joint = (summary[name] for name in _SCHEDULES)
    own_s = sequential["busy_s_per_step"]
    slower_s = max(own_s.values())
    num_stages = len(own_s)
    bubble = (num_stages - 1) / (micro_batches + num_stages - 1)
    return {
        "teacher_own_s": own_s["teacher"],
        "student_own_s": own_s["student"],
        "balance": slower_s / min(own_s.values()),
        "bound": sum(own_s.values()) / slower_s,
        "overlapped_over_sequential": overlapped["tokens_per_s"] / sequential["tokens_per_s"],
        "overlapped_step_over_slower_stage": overlapped["step_s"] / slower_s,
        "joint_idle_share": joint["idle_share"],
        "joint_ideal_idle_share": bubble,
        "joint_idle_over_ideal": joint["idle_share"] / bubble,
    }


_SCHEDULES = ("sequential", "overlapped", "joint")
