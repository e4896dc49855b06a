"""The one executor: runs the stages' programs, of one stage on a rank or of all in a process.

With several stages in one process it goes back and forth between them: whoever's next instruction
can run without waiting for the other runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch

from tsarch.clock import now_s
from tsarch.data.feed import Feed
from tsarch.parallel.link import Link
from tsarch.parallel.tied_embedding import TiedEmbedding
from tsarch.rank.activity import Activity
from tsarch.records import Message, TickReport, TraceEvent
from tsarch.schedule.instruction import (
    Backward,
    FinishTiedExchange,
    Forward,
    Instruction,
    OptimizerStep,
    Program,
    Receive,
    RecvGrad,
    RecvHidden,
    Send,
    SendGrad,
    SendHidden,
    StartTiedExchange,
)
from tsarch.stage.running import RunningStage
from tsarch.topology import Stage

Ticks = dict[Stage, tuple[Program, ...]]


Around = Callable[[Stage, Instruction], AbstractContextManager[object]]
"""Makes what an instruction of a stage is run within."""

LocalStages = Mapping[Stage, RunningStage]
"""The stages that live in this process: one on a rank, all in one process."""


class Executor:
    """Runs ticks of instructions and reports what each stage did in each tick."""

    def __init__(
        self,
        stages: LocalStages,
        link: Link,
        tied: TiedEmbedding,
        learning_rate_factor: Callable[[int], float],
        activity: Activity,
    ) -> None:
        self._activity = activity
        self._stages = stages
        self._link = link
        self._tied = tied
        self._learning_rate_factor = learning_rate_factor
        self._runs: dict[Stage, _StageRun] = {}
        self._feed: Feed | None = None
        self._trace = False
        self.around: Around | None = None
        """What each instruction is run within; None: nothing."""

    def load(self, ticks: Ticks, feed: Feed, first_tick: int = 0, trace: bool = False) -> None:
        """Take up new programs; nothing of the old ones may be left.

        `trace`: reports tell every instruction.
        """
        self._trace = trace
        assert all(run.is_done for run in self._runs.values()), "the pipeline is not empty"
        self._feed = feed
        self._runs = {
            stage: _StageRun(stage, self._stages[stage].replica, ticks[stage], first_tick)
            for stage in self._stages
        }
        for run in self._runs.values():
            self._expect_next(run)

    def advance(self, num_ticks: int) -> list[TickReport]:
        """Run the next `num_ticks` ticks (or what is left of them)."""
        for run in self._runs.values():
            run.limit = min(run.limit + num_ticks, len(run.ticks))
        reports: list[TickReport] = []
        while not all(run.at_limit for run in self._runs.values()):
            reports += self._sweep()
        if all(run.is_done for run in self._runs.values()):
            self._link.flush()
        return reports

    def _sweep(self) -> list[TickReport]:
        """Let every stage here run until it has to wait for another one here."""
        reports = []
        moved = False
        for run in self._runs.values():
            while not run.at_limit and self._is_ready(run.stage, run.next):
                reports += self._run_next(run)
                moved = True
        assert moved, f"deadlock: {[run.next for run in self._runs.values() if not run.at_limit]}"
        return reports

    def _run_next(self, run: _StageRun) -> list[TickReport]:
        instruction = run.next
        link_wait_s, tied_wait_s = self._link.wait_s, self._tied.wait_s
        self._activity.begin(instruction)
        start_s = now_s()
        with nullcontext() if self.around is None else self.around(run.stage, instruction):
            self._do(run, instruction)
        if self._trace:
            await_device(self._stages[run.stage].engine.device)
        end_s = now_s()
        link_wait_s = self._link.wait_s - link_wait_s
        tied_wait_s = self._tied.wait_s - tied_wait_s
        wait_s = link_wait_s + tied_wait_s
        report = run.report
        report.busy_s += end_s - start_s - wait_s
        report.link_wait_s += link_wait_s
        report.tied_wait_s += tied_wait_s
        kind = _kind(instruction)
        if kind == "link":
            report.link_s += end_s - start_s - wait_s
        elif kind == "tied":
            report.tied_s += end_s - start_s - wait_s
        report.started_s = report.started_s or start_s
        report.ended_s = end_s
        if self._trace:
            report.events.append(
                TraceEvent(
                    type(instruction).__name__,
                    kind,
                    getattr(instruction, "step", None),
                    getattr(instruction, "micro_batch", None),
                    start_s,
                    end_s,
                    wait_s,
                    self._peers(run, instruction),
                )
            )
        finished = run.pass_on()
        if finished is None:
            return []
        finished.link_bytes, self._link.bytes_sent = self._link.bytes_sent, 0
        finished.tied_bytes, self._tied.bytes_exchanged = self._tied.bytes_exchanged, 0
        return [finished]

    def _is_ready(self, stage: Stage, instruction: Instruction) -> bool:
        match instruction:
            case RecvHidden() | RecvGrad():
                return all(map(self._link.is_ready, self._expected(stage, instruction)))
            case FinishTiedExchange(exchange):
                return self._tied.is_started(exchange)
        return True

    def _do(self, run: _StageRun, instruction: Instruction) -> None:
        stage = self._stages[run.stage]
        feed = self._require_feed
        match instruction:
            case Forward(step, micro_batch, update):
                run.report.step = step
                run.report.num_tokens = feed.plan(step).num_tokens
                run.report.losses += stage.forward(feed, step, micro_batch, update)
                num_real, num_positions = stage.positions.take()
                run.report.num_real += num_real
                run.report.num_positions += num_positions
            case Backward(step, micro_batch, last):
                stage.backward(step, micro_batch, last)
            case SendHidden(step, micro_batch, peer) | SendGrad(step, micro_batch, peer):
                stage.send(feed, self._link, step, micro_batch, peer)
            case RecvHidden(step, micro_batch, peer, requires_grad):
                stage.receive(feed, self._link, step, micro_batch, peer, requires_grad)
                self._expect_next(run)
            case RecvGrad(step, micro_batch, peer):
                stage.receive(feed, self._link, step, micro_batch, peer)
                self._expect_next(run)
            case OptimizerStep(step):
                factor = self._learning_rate_factor(step)
                run.report.learning_rate_factor = factor
                run.report.grad_norm = stage.engine.step(factor)
                run.report.skipped = not math.isfinite(run.report.grad_norm)
                stage.rows.forget(step)
            case StartTiedExchange():
                self._start_exchange(run.stage, instruction)
            case FinishTiedExchange(exchange):
                run.report.tied_skipped |= not self._tied.finish(exchange)

    def _start_exchange(self, stage: Stage, start: StartTiedExchange) -> None:
        touched = self._require_feed.touched(tuple(step for _, step in start.contributions))
        own = dict(start.contributions).get(stage)
        local = self._stages[stage]
        contribution = None if own is None else local.rows.take(own)
        factor = self._learning_rate_factor(start.learning_rate_step)
        self._tied.start(start.exchange, touched, contribution, local.engine.grad_scale, factor)

    def _expected(self, stage: Stage, instruction: Send | Receive) -> list[Message]:
        """What a receiving instruction of a stage waits for."""
        own, feed = self._stages[stage], self._require_feed
        return own.expected(feed, instruction.step, instruction.micro_batch, instruction.peer)

    def _peers(self, run: _StageRun, instruction: Instruction) -> tuple[int, ...]:
        """Ranks at the other end of a link instruction: the same in both directions."""
        if not isinstance(instruction, Send | Receive):
            return ()
        return tuple(message.source for message in self._expected(run.stage, instruction))

    def _expect_next(self, run: _StageRun) -> None:
        """Post the receives of the next instruction that has some, so that states arrive during
        other work."""
        following = run.next_receive()
        if following is not None:
            for message in self._expected(run.stage, following):
                self._link.expect(message)

    @property
    def _require_feed(self) -> Feed:
        assert self._feed is not None
        return self._feed


def await_device(device: torch.device) -> None:
    """Let a GPU finish what it was told, so that an instruction's time is its own. Its stream
    only: to wait for posted receives of other streams would be a deadlock."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _kind(instruction: Instruction) -> str:
    match instruction:
        case Forward() | Backward():
            return "compute"
        case OptimizerStep():
            return "step"
        case StartTiedExchange() | FinishTiedExchange():
            return "tied"
    return "link"


class _StageRun:
    """Where a stage is in its program."""

    def __init__(
        self, stage: Stage, replica: int, ticks: tuple[Program, ...], first_tick: int
    ) -> None:
        self.stage = stage
        self._replica = replica
        self.ticks = ticks
        self.limit = 0
        self._first_tick = first_tick
        self._tick = 0
        self._place = 0
        self._receives = [i for tick in ticks for i in tick if isinstance(i, Receive)][::-1]
        self._skip_empty()
        self.report = self._new_report()

    @property
    def is_done(self) -> bool:
        """Whether all ticks have run."""
        return self._tick == len(self.ticks)

    @property
    def at_limit(self) -> bool:
        """Whether the ticks asked for so far have run."""
        return self._tick >= self.limit

    @property
    def next(self) -> Instruction:
        """The next instruction."""
        return self.ticks[self._tick][self._place]

    def next_receive(self) -> Receive | None:
        """The next receiving instruction not handed out before."""
        return self._receives.pop() if self._receives else None

    def pass_on(self) -> TickReport | None:
        """Go on to the next instruction; the report of the tick that this ends, if it does."""
        self._place += 1
        if self._place < len(self.ticks[self._tick]):
            return None
        self._place = 0
        self._tick += 1
        self._skip_empty()
        finished = self.report
        self.report = self._new_report()
        return finished

    def _skip_empty(self) -> None:
        while self._tick < len(self.ticks) and not self.ticks[self._tick]:
            self._tick += 1

    def _new_report(self) -> TickReport:
        return TickReport(self.stage.value, self._replica, self._first_tick + self._tick, None)
