"""Numbers of a run: rows of steps put together from the ranks' reports, and totals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tsarch.records import LossParts, TickReport
from tsarch.topology import Stage, Topology

StepRecord = dict[str, float | int | None]


def show_metric(value: float) -> str:
    """Five digits or so: 0.6543, 28.19, 4,395.2."""
    if abs(value) < 10:
        return f"{value:.4f}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.1f}"


@dataclass
class _Pending:
    losses: LossParts = field(default_factory=lambda: LossParts({}))
    num_reports: int = 0
    num_tokens: int = 0
    factor: float = 0.0
    skipped: list[str] = field(default_factory=list)
    grad_norms: dict[str, float | None] = field(default_factory=dict)
    busy_s: dict[str, float] = field(default_factory=dict)
    real: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    link_bytes: int = 0
    tied_bytes: int = 0
    link_s: float = 0.0
    link_wait_s: float = 0.0
    tied_s: float = 0.0
    tied_wait_s: float = 0.0
    ended_s: float = 0.0


class StepTable:
    """Makes a row of every step as soon as all ranks of both stages have reported it.

    Its `state` is JSON, for checkpoints.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._pending: dict[int, _Pending] = {}
        self._last_end_s = 0.0
        self.totals = Totals()

    def state(self) -> dict[str, Any]:
        """Totals, and the steps that not all ranks have reported yet: those that one stage has
        done (all its ranks) and the other has not."""
        pending = {str(step): asdict(own) for step, own in self._pending.items()}
        return {"totals": self.totals.state(), "pending": pending}

    def restore(self, state: dict[str, Any], earlier: Topology) -> None:
        """Go on from a `state`, of the ranks of an `earlier` topology."""
        self.totals = Totals.restored(state["totals"])
        for stage in self._topology.stages:
            # Shares of the time stay what they were, if now other ranks share it.
            share = self._topology.replicas(stage) / earlier.replicas(stage)
            if stage.name in self.totals.busy_s:  # it isn't before the first step
                self.totals.busy_s[stage.name] *= share
        for step, own in state["pending"].items():
            pending = _Pending(**{**own, "losses": LossParts(own["losses"]["means"])})
            pending.num_reports = self._topology.counts[0]
            self._pending[int(step)] = pending

    def start_span(self, now_s: float) -> None:
        """Training begins (again) now; time before does not count."""
        self._last_end_s = now_s
        self.totals.start_span()

    def add(self, reports: list[TickReport], epoch: int) -> list[StepRecord]:
        """Take reports in; returns the rows that they complete, in order of steps."""
        for report in reports:
            self.totals.add(report)
            if report.step is not None:
                pending = self._pending.get(report.step)
                if pending is None:
                    pending = self._pending[report.step] = _Pending()
                _merge(pending, report)
        complete = [
            step
            for step, pending in self._pending.items()
            if pending.num_reports == self._topology.num_ranks
        ]
        return [self._row(step, epoch, self._pending.pop(step)) for step in sorted(complete)]

    def _row(self, step: int, epoch: int, p: _Pending) -> StepRecord:
        wall_s = max(p.ended_s - self._last_end_s, 0.0)
        self._last_end_s = p.ended_s
        self.totals.steps += 1
        self.totals.tokens += p.num_tokens
        self.totals.train_s += wall_s
        self.totals.bad_steps += bool(p.skipped)
        self.totals.bad_in_a_row = self.totals.bad_in_a_row + 1 if p.skipped else 0
        row: StepRecord = {"step": step, "epoch": epoch}
        row |= {f"loss_{name}": _finite(value) for name, value in p.losses.means.items()}
        row |= {f"grad_norm_{stage}": _finite(norm) for stage, norm in p.grad_norms.items()}
        row["skipped"] = len(p.skipped)
        row |= {"learning_rate_factor": p.factor, "tokens": p.num_tokens, "wall_s": wall_s}
        row["tokens_per_s"] = p.num_tokens / wall_s if wall_s > 0 else None
        for stage in self._topology.stages:
            row[f"busy_{stage}_s"] = p.busy_s.get(stage.name, 0.0) / self._topology.replicas(stage)
            row[f"real_share_{stage}"] = _share(stage, p.real, p.positions)
        row |= {"link_bytes": p.link_bytes, "tied_bytes": p.tied_bytes}
        row |= {"link_s": p.link_s, "link_wait_s": p.link_wait_s}
        row |= {"tied_s": p.tied_s, "tied_wait_s": p.tied_wait_s}
        return row


def _finite(value: float | None) -> float | None:
    """None for what JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None


def _share(stage: Stage, real: Mapping[str, int], positions: Mapping[str, int]) -> float | None:
    """Real tokens over the positions that a stage computed; None: it computed none."""
    computed = positions.get(stage.name, 0)
    return real[stage.name] / computed if computed else None


def _merge(pending: _Pending, report: TickReport) -> None:
    pending.losses += report.losses
    pending.num_reports += 1
    pending.num_tokens = report.num_tokens
    pending.factor = max(pending.factor, report.learning_rate_factor)
    for name, skipped in ((report.stage, report.skipped), ("embedding", report.tied_skipped)):
        if skipped and name not in pending.skipped:
            pending.skipped.append(name)
    if report.replica == 0:
        pending.grad_norms[report.stage] = report.grad_norm
    pending.busy_s[report.stage] = pending.busy_s.get(report.stage, 0.0) + report.busy_s
    _add(pending.real, report.stage, report.num_real)
    _add(pending.positions, report.stage, report.num_positions)
    pending.link_bytes += report.link_bytes
    pending.tied_bytes += report.tied_bytes
    pending.link_s += report.link_s
    pending.link_wait_s += report.link_wait_s
    pending.tied_s += report.tied_s
    pending.tied_wait_s += report.tied_wait_s
    pending.ended_s = max(pending.ended_s, report.ended_s)


def _add(sums: dict[str, int], name: str, value: int) -> None:
    sums[name] = sums.get(name, 0) + value


@dataclass
class Totals:
    """Sums over the run."""

    steps: int = 0
    tokens: int = 0
    """Real tokens that both stages trained on."""
    bad_steps: int = 0
    """Steps with an update left out, since a loss or gradient was not finite."""
    bad_in_a_row: int = 0
    """The same up to the last step, without a good one between them."""
    train_s: float = 0.0
    """Seconds of training as the driver sees them: validation left out, the start of each epoch
    (telling the ranks, the first plans) included."""
    busy_s: dict[str, float] = field(default_factory=dict)
    """Seconds of work of each stage, summed over its ranks."""
    real: dict[str, int] = field(default_factory=dict)
    """Real tokens that each stage's model read, every pass over them counted."""
    positions: dict[str, int] = field(default_factory=dict)
    """Positions that it computed for them, padding included."""
    link_bytes: int = 0
    tied_bytes: int = 0
    link_s: float = 0.0
    """Seconds of copying to and from the link, summed over ranks."""
    link_wait_s: float = 0.0
    """Seconds of waiting for boundary messages, summed over ranks."""
    tied_s: float = 0.0
    """Seconds of work on the tied exchange and the table's updates, summed over ranks."""
    tied_wait_s: float = 0.0
    """Seconds of waiting for the tied embedding's gradient, summed over ranks."""
    _past_spans_s: float = 0.0
    _span_started_s: float = math.inf
    _span_ended_s: float = -math.inf

    def state(self) -> dict[str, Any]:
        """All of it as JSON."""
        public = {f.name: getattr(self, f.name) for f in fields(self) if f.name[0] != "_"}
        return {**public, "pipeline_s": self.pipeline_s}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Totals:
        """Totals that go on from a `state`."""
        totals = cls(**{name: value for name, value in state.items() if name != "pipeline_s"})
        totals._past_spans_s = state["pipeline_s"]
        return totals

    def start_span(self) -> None:
        """The pipeline was drained; what comes now does not belong to the time before."""
        self._past_spans_s = self.pipeline_s
        self._span_started_s, self._span_ended_s = math.inf, -math.inf

    def add(self, report: TickReport) -> None:
        """Count a tick of a rank."""
        self.busy_s[report.stage] = self.busy_s.get(report.stage, 0.0) + report.busy_s
        _add(self.real, report.stage, report.num_real)
        _add(self.positions, report.stage, report.num_positions)
        self.link_bytes += report.link_bytes
        self.tied_bytes += report.tied_bytes
        self.link_s += report.link_s
        self.link_wait_s += report.link_wait_s
        self.tied_s += report.tied_s
        self.tied_wait_s += report.tied_wait_s
        self._span_started_s = min(self._span_started_s, report.started_s)
        self._span_ended_s = max(self._span_ended_s, report.ended_s)

    @property
    def pipeline_s(self) -> float:
        """Seconds from the first instruction's start to the last one's end on any rank, added up
        over the spans (epochs): fill and drain included, validation left out."""
        return self._past_spans_s + max(self._span_ended_s - self._span_started_s, 0.0)

    @property
    def tokens_per_s(self) -> float:
        """Real training tokens per second of training."""
        return self.tokens / self.train_s if self.train_s > 0 else 0.0

    def real_share(self, stage: Stage) -> float | None:
        """Share of real tokens in what a stage computed; None: it computed nothing."""
        return _share(stage, self.real, self.positions)

    def busy_share(self, stage: Stage, topology: Topology) -> float:
        """Share of `pipeline_s` in which a rank of the stage works, averaged."""
        available_s = self.pipeline_s * topology.replicas(stage)
        return self.busy_s.get(stage.name, 0.0) / available_s if available_s > 0 else 0.0

    def bubble_fraction(self, topology: Topology) -> float:
        """Idle share of all ranks: 1 − (seconds of work) / (`pipeline_s` × ranks).

        Work is the time inside instructions without waiting for link and tied exchange, so that
        this is `trace.idle_share` of the run's trace. An engine's own collectives count as work.
        """
        available_s = self.pipeline_s * topology.num_ranks
        return max(1.0 - sum(self.busy_s.values()) / available_s, 0.0) if available_s else 0.0
