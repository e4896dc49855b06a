"""Schedules as pure functions: from a name, a graph of stages and counts to each stage's list of
instructions."""

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
from tsarch.topology import PAIR, Graph, Stage

ScheduleName = Literal["sequential", "overlapped", "joint"]


@dataclass(frozen=True)
class Alternation:
    """m teacher updates, then n student updates, in a cycle of max(m, n) batches.

    A stage that reads contexts is updated on the first m batches of a cycle, one that reads windows
    on the last n; on the other batches a stage runs forward only. 1:1 updates both on every batch.
    """

    teacher_steps: int = 1
    student_steps: int = 1

    def updates(self, stage: Stage, step: int) -> bool:
        """Whether `stage` is updated on batch `step`."""
        cycle = max(self.teacher_steps, self.student_steps)
        place = step % cycle
        if stage.reads == "contexts":
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
    graph: Graph = PAIR,
) -> dict[Stage, tuple[Program, ...]]:
    """Instructions of all stages, tick by tick; the pipeline is empty at both ends of `span`.

    A tick is one batch (`sequential`, `joint`) or one pipeline beat (`overlapped`, as many more
    than batches as the graph is deep). `train_embedding=False` (a frozen table) leaves out the tied
    exchanges. `in_flight` is how many micro-batches of `joint` may be forwarded by the teacher and
    not yet back-propagated: 2 is plain 1F1B for two stages (Narayanan et al. 2019, PipeDream,
    section 3.2), more let the student's queue absorb unequal micro-batches. `sequential` is the
    article's alternation, `overlapped` its pipelined form.

    Raises:
        ValueError: `joint`, which updates both at once, with an alternation other than 1:1.
    """
    if name == "joint" and alternation not in (None, Alternation()):
        raise ValueError(f"joint updates both stages on every batch, not by {alternation}")
    builder = _Builder(
        graph, num_micro_batches, alternation or Alternation(), train_embedding, in_flight
    )
    ticks = {"sequential": _sequential, "overlapped": _overlapped, "joint": _joint}[name]
    programs: dict[Stage, list[Program]] = {stage: [] for stage in graph.stages}
    for placed in ticks(builder, span):
        for stage, program in programs.items():
            program.append(tuple(instruction for s, instruction in placed if s is stage))
    return {stage: tuple(program) for stage, program in programs.items()}


def resumed(
    programs: dict[Stage, tuple[Program, ...]], num_done: int
) -> tuple[dict[Stage, tuple[Program, ...]], tuple[SendHidden, ...]]:
    """What is left after the first `num_done` ticks, and what is in flight between the two: sent in
    those ticks, received later (`overlapped`, where the student is one batch behind)."""
    done = [
        (stage, instruction)
        for stage, ticks in programs.items()
        for tick in ticks[:num_done]
        for instruction in tick
    ]
    received = {
        (i.peer, stage, i.step, i.micro_batch) for stage, i in done if isinstance(i, RecvHidden)
    }
    sent = [(stage, i) for stage, i in done if isinstance(i, SendHidden)]
    left = {stage: ticks[num_done:] for stage, ticks in programs.items()}
    return left, tuple(
        i for stage, i in sent if (stage, i.peer, i.step, i.micro_batch) not in received
    )


def forward_programs(num_batches: int, graph: Graph = PAIR) -> dict[Stage, tuple[Program, ...]]:
    """Evaluation: all stages run forward only over batches 0 … `num_batches` − 1."""
    builder = _Builder(graph, 1, Alternation(), False, 1)
    return {
        stage: tuple(
            tuple(i for _, i in builder.forward(stage, batch, 0, update=False))
            for batch in range(num_batches)
        )
        for stage in graph.stages
    }


Placed = tuple[Stage, Instruction]


@dataclass(frozen=True)
class _Builder:
    graph: Graph
    num_micro_batches: int
    alternation: Alternation
    train_embedding: bool
    in_flight: int

    def forward(
        self,
        stage: Stage,
        step: int,
        micro_batch: int,
        update: bool,
        requires_grad: bool = False,
    ) -> Iterator[Placed]:
        """Take what feeds the stage, run it, pass its states on."""
        for source in self.graph.sources(stage):
            yield stage, RecvHidden(step, micro_batch, source, requires_grad)
        yield stage, Forward(step, micro_batch, update)
        for target in self.graph.targets(stage):
            yield stage, SendHidden(step, micro_batch, target)

    def backward(self, stage: Stage, step: int, micro_batch: int, joint: bool) -> Iterator[Placed]:
        """Back-propagate; `joint`: gradients of hidden states come and go too."""
        for target in self.graph.targets(stage) if joint else ():
            yield stage, RecvGrad(step, micro_batch, target)
        yield stage, Backward(step, micro_batch, last=micro_batch == self.num_micro_batches - 1)
        for source in self.graph.sources(stage) if joint else ():
            yield stage, SendGrad(step, micro_batch, source)

    def compute(self, stage: Stage, step: int) -> Iterator[Placed]:
        """Forward, boundary and backward of all micro-batches of a step."""
        update = self.alternation.updates(stage, step)
        for micro_batch in range(self.num_micro_batches):
            yield from self.forward(stage, step, micro_batch, update)
            if update:
                yield from self.backward(stage, step, micro_batch, joint=False)

    def update(
        self, exchange: int, learning_rate_step: int, work: dict[Stage, int]
    ) -> Iterator[Placed]:
        """Step the stages that worked (stage → step) and, with all ranks, the table."""
        due = tuple((s, k) for s, k in work.items() if self.alternation.updates(s, k))
        exchanged = bool(due) and self.train_embedding
        for stage in self.graph.stages:
            if exchanged:
                yield stage, StartTiedExchange(exchange, learning_rate_step, due)
            if (stage, work.get(stage)) in due:
                yield stage, OptimizerStep(work[stage])
            if exchanged:
                yield stage, FinishTiedExchange(exchange)


def _sequential(builder: _Builder, steps: StepRange) -> Iterator[list[Placed]]:
    """Batch k: the teacher steps (θ_T, E); then the student, on the new E, steps (θ_S, E)."""
    stages = builder.graph.stages
    for step in steps.steps:
        tick: list[Placed] = []
        for offset, stage in enumerate(stages):
            tick += builder.compute(stage, step)
            tick += builder.update(len(stages) * step + offset, step, {stage: step})
        yield tick


def _overlapped(builder: _Builder, steps: StepRange) -> Iterator[list[Placed]]:
    """Tick k: a stage of depth d works on batch k − d (the teacher on k, the student on k − 1), all
    on E_k; then E steps."""
    depths = {stage: builder.graph.depth(stage) for stage in builder.graph.stages}
    for tick in range(steps.start, steps.stop + max(depths.values())):
        work = {stage: tick - depth for stage, depth in depths.items()}
        work = {stage: step for stage, step in work.items() if step in steps.steps}
        placed = [p for stage, step in work.items() for p in builder.compute(stage, step)]
        yield placed + list(builder.update(2 * tick, min(tick, steps.stop - 1), work))


def _joint(builder: _Builder, steps: StepRange) -> Iterator[list[Placed]]:
    """Batch k: 1F1B over its micro-batches on one E_k; then all parameters and E step together.

    A stage is ahead of its backward pass as far as `in_flight` allows, one that nobody takes states
    from not at all.
    """
    m = builder.num_micro_batches
    for step in steps.steps:
        tick: list[Placed] = []
        for stage in builder.graph.stages:
            ahead = builder.in_flight - 1 if builder.graph.targets(stage) else 0
            for slot in range(m + ahead):
                if slot < m:
                    tick += builder.forward(stage, step, slot, True, requires_grad=True)
                if 0 <= slot - ahead < m:
                    tick += builder.backward(stage, step, slot - ahead, joint=True)
        yield tick + list(builder.update(2 * step, step, dict.fromkeys(builder.graph.stages, step)))
