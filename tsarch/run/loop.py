"""The run loop: evaluate, train epoch by epoch, keep the best weights, evaluate again.

It only schedules and collects numbers; a `Crew` does the work, in one process or on many.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import version

from tsarch.blueprint import Blueprint
from tsarch.checkpoint.cut import Resume
from tsarch.checkpoint.store import Store
from tsarch.clock import now_s
from tsarch.config_loading import dump_config
from tsarch.data.loader import BatchPlan
from tsarch.errors import HeadLostError, InterruptedRunError, RankFailedError
from tsarch.feeds import batch_plan, num_training_steps
from tsarch.marking.summary import error_summary
from tsarch.model_folder import TaskFile, replace_folder, save_description, writing
from tsarch.planning.balance import Proposal
from tsarch.prepare import Prepared
from tsarch.rank.api import RankApi
from tsarch.rank.crew import Crew, CutTaken, Draining, Event, Reports, drive
from tsarch.rank.pacer import Pacer, Situation
from tsarch.records import TickReport
from tsarch.run.bad_batch import save_bad_batch
from tsarch.run.checkpoint_keeper import CheckpointKeeper, cut_rules
from tsarch.run.evaluate import best_mode
from tsarch.run.examiner import Examiner
from tsarch.run.interrupt import Interrupt
from tsarch.run.kept_states import KeptStates
from tsarch.run.ledger import Ledger
from tsarch.run.marked_split import Examined
from tsarch.run.number_guard import NumberGuard
from tsarch.run.restarts import History
from tsarch.run.resume import ResumePoint
from tsarch.run.self_score import text_signatures
from tsarch.run.summary import (
    RunSummary,
    Work,
    peak_memory_bytes,
    stage_summary,
    tied_max_abs_diff,
)
from tsarch.run.texts import pass_figures
from tsarch.tasks.registry import make_task
from tsarch.telling.run_folder import RunFolder
from tsarch.telling.step_table import show_metric
from tsarch.telling.terminal import LiveNumbers, Reporter
from tsarch.telling.trackers import Trackers
from tsarch.timings import TIMINGS
from tsarch.topology import Stage

_NUM_SAMPLES = 5
"""Generated texts that the summary shows."""


class Trainer:
    """One run from the first evaluation to `summary.json`."""

    def __init__(
        self,
        blueprint: Blueprint,
        prepared: Prepared,
        crew: Crew,
        folder: RunFolder,
        trackers: Trackers,
        reporter: Reporter,
        store: Store,
        proposal: Proposal | None = None,
        point: ResumePoint | None = None,
        history: History | None = None,
        kept: KeptStates | None = None,
    ) -> None:
        """`store`: where checkpoints go. `point`: the one that the run goes on from. `history`: of
        a run that has failed before in this process. `kept`: is told what goes with cuts in
        memory."""
        self._blueprint = blueprint
        self._prepared = prepared
        self._crew = crew
        self._folder = folder
        self._reporter = reporter
        self._proposal = proposal
        self._point = point
        self._task = make_task(blueprint.task.name, prepared.labels, blueprint.task)
        self._examiner = Examiner(blueprint, prepared, self._task, crew)
        plan = batch_plan(blueprint, prepared.training)
        self._num_steps = num_training_steps(blueprint, plan)
        self._epochs = _epochs(plan, self._num_steps)
        self._ledger = Ledger(
            blueprint, crew.topology, prepared, self._task, trackers, history or History()
        )
        save_batch = partial(save_bad_batch, folder.bad_batches, blueprint, prepared, plan)
        self._guard = NumberGuard(blueprint.failure.max_bad_steps, save_batch, reporter.say)
        self._interrupt = Interrupt(reporter.say)
        self._keeper = CheckpointKeeper(
            blueprint.checkpoint,
            store,
            crew,
            dump_config(blueprint.config),
            folder.model,
            reporter.say,
            None if point is None else point.saved_step,
        )
        self._pacer = Pacer(crew.pace, cut_rules(store.url, blueprint), time.monotonic())
        self._kept = kept or KeptStates()
        self._leaving: Draining | None = None
        if point is not None:
            self._ledger.restore(point)
            self._pacer.resumed_at(point.step, point.is_in_memory)

    def run(self) -> RunSummary:
        """Train; returns what `summary.json` holds.

        Raises:
            InterruptedRunError: SIGTERM or Ctrl-C came; a checkpoint has been written.
            RunFailedError: too many steps in a row were not finite, or a rank failed.
        """
        if self._point is None and self._blueprint.evaluation.before:
            self._reporter.say("measuring the test split before training")
            with TIMINGS.during("measuring the test split before training"):
                self._ledger.before = self._test(0.5, "before").evaluation.metrics
        try:
            with self._interrupt, self._reporter.training(self._num_steps), self._profiling():
                self._train_epochs()
            self._keeper.finish()
        finally:
            self._keeper.close()
        self._crew.ask(RankApi.check_replicas, self._num_steps)
        summary = self._summarize()
        self._folder.write_summary(summary.as_json())
        return summary

    @contextmanager
    def _profiling(self) -> Iterator[None]:
        """Let the ranks record some steps, if the run is to be profiled."""
        num_steps = self._blueprint.run.profile_steps
        if num_steps:
            self._folder.profile.mkdir(exist_ok=True)
            self._crew.ask(RankApi.profile, self._folder.profile, num_steps)
        yield
        if num_steps:
            found = [own for own in self._crew.ask(RankApi.profiled) if own is not None]
            self._folder.write_profiles(found)

    def _train_epochs(self) -> None:
        resume, first = None, 0
        if self._point is not None:
            resume = self._point.resume(self._blueprint)
            first = self._point.progress.epoch + self._point.progress.epoch_done
        for epoch, (start, stop) in list(enumerate(self._epochs))[first:]:
            if self._ledger.selection.patience_is_over:
                number = self._ledger.selection.num_worse
                self._reporter.say(f"no better result in {number} validations: stop")
                break
            self._train(epoch, start, stop, resume)
            resume = None
            if not self._pacer.is_stopping:
                score = None
                every = self._blueprint.evaluation.every_epochs
                if stop == self._num_steps or (epoch + 1) % every == 0:
                    score = self._validate(epoch, stop)
                self._end_epoch(score)
            if self._pacer.is_stopping:
                self._end_early()

    def _train(self, epoch: int, start: int, stop: int, resume: Resume | None) -> None:
        self._ledger.start_span(now_s())
        first = start if resume is None else resume.tick
        self._pacer.begin(epoch, first, stop, self._crew.begin(start, stop, resume))
        with TIMINGS.during("training"):
            for event in drive(self._crew, self._pacer, self._look, self._keeper.begin):
                self._handle(event)

    def _end_epoch(self, score: float | None) -> None:
        """Take the checkpoint that is due after an epoch; `score`: of its validation."""
        command = self._pacer.end_epoch(self._look())
        if command is not None and self._keeper.begin(command.cut):
            self._crew.send(command)
            for event in self._crew.events():
                self._handle(event, score)

    def _end_early(self) -> None:
        """Wait for the checkpoint and end the run.

        Raises:
            InterruptedRunError, HeadLostError: always one of them.
        """
        self._keeper.finish()
        number = self._interrupt.signal
        saved = f"saved at step {self._keeper.last}" if self._keeper.last else "NOT saved"
        if number is None:
            raise HeadLostError(f"{self._crew.ending}: ended, {saved}.")
        raise InterruptedRunError(number, f"ended by {number.name}, {saved}.")

    def _look(self) -> Situation:
        """What the pacer is to know."""
        interrupted = self._interrupt.signal is not None or self._crew.ending is not None
        return Situation(time.monotonic(), interrupted, self._keeper.is_writing)

    def _handle(self, event: Event, score: float | None = None) -> None:
        """What the ranks have done; `score`: of the validation before it."""
        match event:
            case Reports():
                self._note(event.reports)
                self._keeper.tend()
            case CutTaken(taken, stalls):
                state = self._ledger.state(taken)
                self._kept.taken(taken.cut.step, state, self._crew.kept_cuts)
                first = 0 if self._point is None else self._point.step
                if taken.cut.step > first:  # that one every rank can make anew
                    self._crew.copy_cut(taken.cut.step)
                self._pacer.cut_cost(max(own.stall_s for own in stalls))
                if taken.cut.url is not None:
                    self._keeper.taken(taken.cut, stalls, state, score)
                    self._move()
            case Draining():
                self._reporter.say(f"{event.reason}: saving a checkpoint")
                self._pacer.cut_soon()
                self._leaving = event

    def _move(self) -> None:
        """After the checkpoint that a notice asked for: go on elsewhere at once, if there is room,
        so that no step is done twice.

        Raises:
            RankFailedError: there is.
        """
        leaving, self._leaving = self._leaving, None
        if leaving is not None and leaving.nodes:
            self._keeper.finish()
            raise RankFailedError(f"{leaving.reason}: its ranks move", now_s(), leaving.nodes)

    def _note(self, reports: list[TickReport]) -> None:
        """Tell of the ticks, and of the steps that are complete now."""
        totals, topology = self._ledger.totals, self._crew.topology
        TIMINGS.mark("first_step_start", min(own.started_s for own in reports))
        TIMINGS.mark("first_step_end", min(own.ended_s for own in reports))
        for row in self._ledger.add(reports, self._pacer.epoch):
            shares = {s.name: totals.busy_share(s, topology) for s in topology.stages}
            numbers = LiveNumbers(row, totals.tokens_per_s, shares)
            self._reporter.step(numbers, totals.steps, self._num_steps)
            self._guard.check(row, totals.bad_in_a_row)

    def _test(self, joint_weight: float, when: str) -> Examined:
        """Metrics of the test split, and generated texts of it; after training its mistakes are
        written too."""
        found = self._examiner.test(joint_weight, marks=when == "after")
        evaluation = found.evaluation
        self._ledger.trackers.evaluation("test", self._ledger.totals.steps, evaluation.metrics)
        self._ledger.trackers.texts(when, [sample.as_json() for sample in found.samples])
        if found.marked is not None:
            best = best_mode(self._task, evaluation)
            num_rows = len(self._prepared.splits["test"].rows)
            self._folder.write_errors(error_summary(found.marked, "test", best, num_rows))
        return found

    def _validate(self, epoch: int, step: int) -> float:
        """Measure the validation split and keep the weights if they are to be kept; the score."""
        with TIMINGS.during("measuring the validation split"):
            evaluation = self._examiner.validate()
        self._ledger.trackers.evaluation("validation", step, evaluation.metrics)
        reason = self._ledger.selection.offer(evaluation, epoch + 1)
        name = self._task.main_metric
        found = evaluation.metrics.items()
        values = " · ".join(f"{mode} {show_metric(m[name])}" for mode, m in found)
        kept = f" ({reason}: kept)" if reason else ""
        self._reporter.say(f"epoch {epoch + 1}: validation {name} {values}{kept}")
        if reason:
            with TIMINGS.during("writing the best weights"):
                self._keep(evaluation.joint_weight)
        return self._ledger.selection.score(evaluation)

    def _keep(self, joint_weight: float) -> None:
        """Write the weights aside, then put them in the place of `model/`."""
        aside = self._folder.path / "model.new"
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
        with writing(aside):
            aside.mkdir()
        self._crew.ask(RankApi.save, aside)
        prepared = self._prepared
        name = self._blueprint.task.name
        task = TaskFile(
            name, prepared.labels, joint_weight, prepared.digests, version("transformers")
        )
        with writing(aside):
            save_description(aside, self._blueprint, task)
            replace_folder(aside, self._folder.model)

    def _summarize(self) -> RunSummary:
        """Measure the test split with the best weights, and put all together."""
        stats, best = self._crew.stats(), self._ledger.selection.best
        self._reporter.say(f"measuring the test split with the weights of epoch {best.epoch}")
        with TIMINGS.during("measuring the test split with the best weights"):
            self._crew.ask(RankApi.load, self._folder.model)
            tested = self._test(best.evaluation.joint_weight, "after")
        after = tested.evaluation
        blueprint, topology, ledger = self._blueprint, self._crew.topology, self._ledger
        one_process = blueprint.runner.is_one_process
        stages = {
            stage: stage_summary(own, topology, one_process, stats[stage])
            for stage, own in blueprint.stages.items()
        }
        splits = self._prepared.held.items()
        return RunSummary(
            task=blueprint.task.name,
            schedule=blueprint.schedule.name,
            runner=blueprint.runner.name,
            teacher=stages.get(Stage.TEACHER),
            student=stages.get(Stage.STUDENT),
            embedding_parameters=stats[topology.stages[0]][0].stage_parameters["embedding"],
            main_metric=self._task.main_metric,
            lower_is_better=self._task.lower_is_better,
            before=ledger.before,
            after=after.metrics,
            validation=best.evaluation.metrics,
            best_epoch=best.epoch,
            selected_by=blueprint.monitor if ledger.selection.can_tell else None,
            joint_weight=after.joint_weight,
            work=Work.of(ledger.totals, topology, ledger.history.wall_s),
            tied_max_abs_diff=tied_max_abs_diff(stats),
            peak_memory_bytes=peak_memory_bytes(stats),
            data={name: asdict(size) for name, size in self._prepared.sizes.items()},
            num_cut_tokens={name: split.num_cut_tokens for name, split in splits},
            signatures=text_signatures(
                self._task, self._prepared.splits["test"], blueprint.decoding.max_texts
            ),
            notes=list(self._prepared.notes),
            balance=None if self._proposal is None else self._proposal.as_json(),
            samples=[sample.as_json() for sample in tested.samples[:_NUM_SAMPLES]],
            generation=pass_figures(tested.passes),
            bad_steps=ledger.totals.bad_steps,
            checkpoints=self._keeper.costs.summary(),
            resumes=ledger.num_resumes,
            restarts=len(ledger.history.restarts),
            failures=ledger.history.as_json(),
            timings=TIMINGS.as_json(),
        )


def _epochs(plan: BatchPlan, num_steps: int) -> list[tuple[int, int]]:
    """(first step, stop) of every epoch, up to the run's last step."""
    bounds = zip(plan.epoch_starts, plan.epoch_starts[1:])
    return [(a, min(b, num_steps)) for a, b in bounds if a < num_steps]
