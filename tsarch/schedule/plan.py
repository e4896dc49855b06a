"""Schedules as pure functions: from a name and counts to each stage's list of instructions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tsarch.schedule.instruction import (
    Backward,
    FinishTiedExchange,
    Forward,
    Instruction,
    OptimizerStep,
    Program,
    RecvGrad,
    RecvHidden,
    SendGrad,
    SendHidden,
    StartTiedExchange,
)
from tsarch.topology import STAGES, Stage

ScheduleName = Literal["sequential", "overlapped", "joint"]


@dataclass(frozen=True)
class Alternation:
    """m teacher updates, then n student updates, in a cycle of max(m, n) batches.

    The teacher is updated on the first m batches of a cycle, the student on the last n; on the
    other batches a stage runs forward only. 1:1 updates both on every batch.
    """

    teacher_steps: int = 1
    student_steps: int = 1

    def updates(self, stage: Stage, step: int) -> bool:
        """Whether `stage` is updated on batch `step`."""
        cycle = max(self.teacher_steps, self.student_steps)
        place = step % cycle
        if stage is Stage.TEACHER:
            return place < self.teacher_steps
        return place >= cycle - self.student_steps


@dataclass(frozen=True)
class StepRange:
    """The batches `start` … `stop` − 1 of a run, trained between two drains of the pipeline."""

    start: int
    stop: int

    @property
    def steps(self) -> range:
        """Step numbers of the span."""
        return range(self.start, self.stop)


def training_programs(
    name: ScheduleName,
    span: StepRange,
    num_micro_batches: int = 1,
    alternation: Alternation | None = None,
    train_embedding: bool = True,
    in_flight: int = 3,
) -> dict[Stage, tuple[Program, ...]]:
    """Instructions of both stages, tick by tick; the pipeline is empty at both ends of `span`.

    A tick is one batch (`sequential`, `joint`) or one pipeline beat (`overlapped`, one more than
    batches). `train_embedding=False` (a frozen table) leaves out the tied exchanges. `in_flight`
    is how many micro-batches of `joint` may be forwarded by the teacher and not yet
    back-propagated: 2 is plain 1F1B for two stages (Narayanan et al. 2019, PipeDream, section
    3.2), more let the student's queue absorb unequal micro-batches. Design: section 2;
    `sequential` is the article's alternation, `overlapped` its pipelined form.

    Raises:
        ValueError: `joint`, which updates both at once, with an alternation other than 1:1.
    """
    if name == "joint" and alternation not in (None, Alternation()):
        raise ValueError(f"joint updates both stages on every batch, not by {alternation}")
    builder = _Builder(num_micro_batches, alternation or Alternation(), train_embedding, in_flight)
    ticks = {"sequential": _sequential, "overlapped": _overlapped, "joint": _joint}[name]
    programs: dict[Stage, list[Program]] = {stage: [] for stage in STAGES}
    for placed in ticks(builder, span):
        for stage, program in programs.items():
            program.append(tuple(instruction for s, instruction in placed if s is stage))
    return {stage: tuple(program) for stage, program in programs.items()}


def resumed(
    programs: dict[Stage, tuple[Program, ...]], num_done: int
) -> tuple[dict[Stage, tuple[Program, ...]], tuple[SendHidden, ...]]:
    """What is left after the first `num_done` ticks, and what is in flight between the two: sent in
    those ticks, received later (`overlapped`, where the student is one batch behind)."""
    done = [i for ticks in programs.values() for tick in ticks[:num_done] for i in tick]
    received = {(i.step, i.micro_batch) for i in done if isinstance(i, RecvHidden)}
    sent = [i for i in done if isinstance(i, SendHidden)]
    left = {stage: ticks[num_done:] for stage, ticks in programs.items()}
    return left, tuple(i for i in sent if (i.step, i.micro_batch) not in received)


def forward_programs(num_batches: int) -> dict[Stage, tuple[Program, ...]]:
    """Evaluation: both stages run forward only over batches 0 … `num_batches` − 1."""
    batches = range(num_batches)
    return {
        Stage.TEACHER: tuple((Forward(b, 0, update=False), SendHidden(b, 0)) for b in batches),
        Stage.STUDENT: tuple((RecvHidden(b, 0), Forward(b, 0, update=False)) for b in batches),
    }


Placed = tuple[Stage, Instruction]


@dataclass(frozen=True)
class _Builder:
    num_micro_batches: int
    alternation: Alternation
    train_embedding: bool
    in_flight: int

    def compute(self, stage: Stage, step: int) -> Iterator[Placed]:
        """Forward, boundary and backward of all micro-batches of a step."""
        update = self.alternation.updates(stage, step)
        for micro_batch in range(self.num_micro_batches):
            if stage is Stage.STUDENT:
                yield stage, RecvHidden(step, micro_batch)
            yield stage, Forward(step, micro_batch, update)
            if stage is Stage.TEACHER:
                yield stage, SendHidden(step, micro_batch)
            if update:
                last = micro_batch == self.num_micro_batches - 1
                yield stage, Backward(step, micro_batch, last)

    def update(
        self, exchange: int, learning_rate_step: int, work: dict[Stage, int]
    ) -> Iterator[Placed]:
        """Step the stages that worked (stage → step) and, with all ranks, the table."""
        due = tuple((s, k) for s, k in work.items() if self.alternation.updates(s, k))
        exchanged = bool(due) and self.train_embedding
        for stage in STAGES:
            if exchanged:
                yield stage, StartTiedExchange(exchange, learning_rate_step, due)
            if (stage, work.get(stage)) in due:
                yield stage, OptimizerStep(work[stage])
            if exchanged:
                yield stage, FinishTiedExchange(exchange)


def _sequential(builder: _Builder, span: StepRange) -> Iterator[list[Placed]]:
    """Batch k: the teacher steps (θ_T, E); then the student, on the new E, steps (θ_S, E)."""
    for step in span.steps:
        tick: list[Placed] = []
        for offset, stage in enumerate(STAGES):
            tick += builder.compute(stage, step)
            tick += builder.update(2 * step + offset, step, {stage: step})
        yield tick


def _overlapped(builder: _Builder, span: StepRange) -> Iterator[list[Placed]]:
    """Tick k: the teacher works on batch k, the student on k − 1, both on E_k; then E steps."""
    for tick in range(span.start, span.stop + 1):
        work = {}
        if tick < span.stop:
            work[Stage.TEACHER] = tick
        if tick > span.start:
            work[Stage.STUDENT] = tick - 1
        placed = [p for stage, step in work.items() for p in builder.compute(stage, step)]
        yield placed + list(builder.update(2 * tick, min(tick, span.stop - 1), work))


def _joint(builder: _Builder, span: StepRange) -> Iterator[list[Placed]]:
    """Batch k: 1F1B over its micro-batches on one E_k; then θ_T, θ_S and E step together."""
    m = builder.num_micro_batches
    for step in span.steps:
        tick: list[Placed] = []
        for slot in range(m + builder.in_flight - 1):
            back = slot - builder.in_flight + 1
            if slot < m:
                tick.append((Stage.TEACHER, Forward(step, slot, update=True)))
                tick.append((Stage.TEACHER, SendHidden(step, slot)))
            if 0 <= back < m:
                tick.append((Stage.TEACHER, RecvGrad(step, back)))
                tick.append((Stage.TEACHER, Backward(step, back, last=back == m - 1)))
        for micro_batch in range(m):
            tick += [
                (Stage.STUDENT, RecvHidden(step, micro_batch, requires_grad=True)),
                (Stage.STUDENT, Forward(step, micro_batch, update=True)),
                (Stage.STUDENT, Backward(step, micro_batch, last=micro_batch == m - 1)),
                (Stage.STUDENT, SendGrad(step, micro_batch)),
            ]
        tick += builder.update(2 * step, step, dict.fromkeys(STAGES, step))
        yield tick
