"""A rank that computes nothing: it walks the real schedule and answers with complete reports.

It stands in for `tsarch.cluster.worker.Worker` to measure the driver alone, and imports no torch.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tsarch.blueprint import Blueprint
from tsarch.checkpoint.cut import Resume
from tsarch.clock import now_s
from tsarch.cluster.worker import Actor
from tsarch.rank.activity import Activity
from tsarch.rank.rank_stats import RankStats
from tsarch.rank.tick_reports import TickReports
from tsarch.records import LossParts, TickReport
from tsarch.schedule.instruction import Forward, Instruction, OptimizerStep, Program
from tsarch.schedule.plan import StepRange, training_programs
from tsarch.topology import Stage

if TYPE_CHECKING:
    from tsarch.cluster.agreement import Facts
    from tsarch.cluster.probe import Request

TOKENS_PER_STEP = 4096
_LOSSES = {
    Stage.TEACHER: LossParts({"teacher": 1.5}),
    Stage.STUDENT: LossParts({"student": 1.25, "student_alone": 0.75, "distillation": 0.5}),
}


class NullWorker(Actor):
    """The methods of `Worker` that a driver calls to train, without a model or a group."""

    def __init__(self, blueprint: Blueprint, rank: int, threads: int, log_file: str) -> None:
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        super().__init__(Activity())
        self._blueprint = blueprint
        self._stage, self._replica = blueprint.topology.place(rank)
        self._ticks: tuple[Program, ...] = ()
        self._first_tick = 0
        self._num_done = 0

    def probe(self, request: Request) -> Facts:
        """See `Worker.probe`; there is no device."""
        from tsarch.cluster.probe import gather_facts

        return gather_facts(replace(request, device="cpu"))

    def wall_clock(self) -> float:
        """See `Worker.wall_clock`."""
        return time.time()

    def offer_addresses(self, stages: tuple[str, ...]) -> dict[str, tuple[str, int]]:
        """Addresses that nobody will use."""
        return dict.fromkeys(("teacher", "student", "link", "tied"), ("127.0.0.1", os.getpid()))

    def join(self, addresses: dict[str, tuple[str, int]]) -> None:
        """There are no groups."""

    def warm_up(self) -> None:
        """As a spare it imports nothing."""

    def keep_in(self, slots: tuple[str, ...]) -> None:
        """There is nothing to keep."""

    def build(self, blueprint: Blueprint) -> None:
        """There are no models."""
        self._blueprint = blueprint

    def begin(self, start: int, stop: int, resume: Resume | None) -> int:
        """See `Rank.begin`; there is nothing to resume."""
        schedule = self._blueprint.schedule
        programs = training_programs(
            schedule.name,
            StepRange(start, stop),
            schedule.micro_batches,
            schedule.alternation,
            in_flight=schedule.in_flight,
        )
        self._ticks = programs[self._stage]
        self._first_tick = start
        self._num_done = 0
        return len(self._ticks)

    def advance(self, num_ticks: int) -> TickReports:
        """See `Rank.advance`."""
        begun = self._num_done
        self._num_done = min(begun + num_ticks, len(self._ticks))
        ticks = range(begun, self._num_done)
        return TickReports(self._run(tick) for tick in ticks if self._ticks[tick])

    def stats(self) -> RankStats:
        """See `Rank.stats`; no parameters, no memory."""
        return RankStats({self._stage.value: 0, "embedding": 0}, 0, 0.0)

    def imported_modules(self) -> list[str]:
        """Names of all modules in this process."""
        return sorted(sys.modules)

    def _run(self, tick: int) -> TickReport:
        started_s = now_s()
        report = TickReport(self._stage.value, self._replica, self._first_tick + tick, None)
        for instruction in self._ticks[tick]:
            self._do(report, instruction)
        report.link_bytes = report.tied_bytes = 1
        report.ended_s = now_s()
        report.busy_s = report.ended_s - started_s
        return report

    def _do(self, report: TickReport, instruction: Instruction) -> None:
        match instruction:
            case Forward(step):
                report.step = step
                report.num_tokens = TOKENS_PER_STEP
                report.losses += _LOSSES[self._stage]
            case OptimizerStep():
                report.learning_rate_factor = 1.0
                report.grad_norm = 1.0
