"""A rank's training: the ticks of a run's steps, their learning rate, and its checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from tsarch.blueprint import Blueprint
from tsarch.checkpoint.cut import Cut, Resume, Stall, Written
from tsarch.feeds import batch_plan, num_training_steps, training_feed
from tsarch.prepare import Prepared
from tsarch.profiled import Profile
from tsarch.rank.building import Parts
from tsarch.rank.executor import Executor, Ticks
from tsarch.rank.learning_rate import learning_rate_factor
from tsarch.rank.profiling import Profiler
from tsarch.rank.rank_checkpoint import RankCheckpoint
from tsarch.rank.tick_reports import TickReports
from tsarch.rank.wiring import Wiring
from tsarch.schedule.plan import StepRange, resumed, training_programs
from tsarch.seeding import torch_seed


class Training:
    """Runs the steps of a run on one rank, some ticks at a time."""

    def __init__(
        self, blueprint: Blueprint, prepared: Prepared, wiring: Wiring, parts: Parts
    ) -> None:
        train = prepared.training
        plan = batch_plan(blueprint, train)
        self._blueprint = blueprint
        self._ranks = wiring.ranks
        self._parts = parts
        self.feed = training_feed(
            blueprint,
            train,
            plan,
            wiring.topology,
            parts.vocabulary,
            parts.task.objective.per_sequence,
            prepared.alteration,
        )
        self._num_steps = num_training_steps(blueprint, plan)
        self.executor = Executor(parts.stages, parts.link, parts.tied, self._rate, wiring.activity)
        """Of all that this rank runs: nothing of training may be left when it evaluates."""
        self._tick = self._start = 0
        self._programs: Ticks = dict.fromkeys(wiring.topology.stages, ())
        self._graph = wiring.topology.graph
        self._checkpoint = RankCheckpoint(
            parts.stages, parts.tied, parts.link, self.feed, wiring.topology, wiring.copies
        )
        self._lifeline, self._is_alone = wiring.lifeline, wiring.is_alone
        self._device = wiring.device
        self._profiler: Profiler | None = None
        self._seed_dropout()

    def begin(self, start: int, stop: int, resume: Resume | None) -> int:
        """Take up the steps `start` … `stop` − 1, from their first tick on or from that of a
        checkpoint; returns the number of ticks. On `resume` all ranks call it together."""
        schedule = self._blueprint.schedule
        ticks = training_programs(
            schedule.name,
            StepRange(start, stop),
            schedule.micro_batches,
            schedule.alternation,
            train_embedding=not self._blueprint.table.frozen,
            in_flight=schedule.in_flight,
            graph=self._graph,
        )
        self._parts.train(True)
        self._programs, self._start, self._tick = ticks, start, start
        if resume is not None:
            self._tick = resume.tick
            ticks, in_flight = resumed(ticks, resume.tick - start)
            self._checkpoint.restore(resume.cut, in_flight, resume.same_ranks)
            if not resume.same_ranks:
                self._seed_dropout(resume.tick)
        trace = self._blueprint.run.trace
        self.executor.load(ticks, self.feed, first_tick=self._tick, trace=trace)
        return len(next(iter(ticks.values())))

    def advance(self, num_ticks: int) -> TickReports:
        """Run the next ticks of what `begin` took up. When ranks of the other stage are gone, go on
        to the end of a tick; of all ticks, if this stage has other ranks, which wait for this one
        in collectives that they have begun.

        Raises:
            ReplicaDriftError: replicas of the tied embedding differ (`embedding.check_every`).
            RuntimeError: other ranks are gone.
        """
        reports = TickReports()
        every = self._blueprint.table.check_every
        with self._lifeline.held():
            for _ in range(num_ticks):
                if self._lifeline.error is not None and self._is_alone:
                    break
                reports += self.executor.advance(1)
                self._tick += 1
                if self._profiler is not None:
                    self._profiler.tick_done()
                if every and self._tick % every == 0:
                    self._parts.tied.check_replicas(self._tick)
        return reports

    def profile(self, folder: Path, num_ticks: int) -> None:
        """See `RankApi.profile`."""
        self._profiler = Profiler(folder, self._ranks[0], num_ticks, self._device)
        self.executor.around = self._profiler.around

    def profiled(self) -> Profile | None:
        """See `RankApi.profiled`."""
        found = None if self._profiler is None else self._profiler.end()
        self._profiler = self.executor.around = None
        return found

    def take_checkpoint(self, cut: Cut) -> Stall:
        """Copy the state to host memory and start writing it (all ranks call it, after the same
        tick). The one before must have been written.

        Raises:
            RuntimeError: other ranks are gone.
        """
        _, in_flight = resumed(self._programs, self._tick - self._start)
        if self._lifeline.error is None:
            return self._checkpoint.take(cut, in_flight)
        if not self._is_alone:
            self._checkpoint.help_taking()
        raise self._lifeline.error

    def checkpoint_written(self) -> Written:
        """Wait until the checkpoint under way is written; what was written."""
        written = self._checkpoint.written(wait=True)
        assert written is not None
        return written

    def checkpoint_so_far(self) -> Written | None:
        """`checkpoint_written` without waiting; None: not all yet."""
        return self._checkpoint.written(wait=False)

    def give_up_writing(self) -> None:
        """Write no more of the checkpoint under way."""
        self._checkpoint.give_up_writing()

    def _seed_dropout(self, *tick: int) -> None:
        """Random numbers of this process's own, anew."""
        torch.manual_seed(torch_seed(self._blueprint.seed, "dropout", *self._ranks, *tick))

    def _rate(self, step: int) -> float:
        shape = self._blueprint.learning_rate
        return learning_rate_factor(step, self._num_steps, shape.warmup, shape.decay)
