"""The run loop: evaluate, train epoch by epoch, keep the best weights, evaluate again.

It only schedules and collects numbers; a `Crew` does the work, in one process or on a cluster.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tsarch.checkpoint.cut import Resume
from tsarch.checkpoint.driver_state import BestRecord, DriverState
from tsarch.checkpoint.store import Store
from tsarch.clock import now_s
from tsarch.config import Config, Mode
from tsarch.config_loading import dump_config
from tsarch.errors import InterruptedRunError, RunFailedError
from tsarch.feeds import batch_plan, num_training_steps
from tsarch.model_folder import TaskFile, replace_folder, save_description
from tsarch.planning.balance import Proposal
from tsarch.prepare import Prepared
from tsarch.rank.api import RankApi
from tsarch.rank.crew import Crew, CutTaken, Draining, Event, Reports, drive
from tsarch.rank.pacer import CutRules, Pacer, Situation, TakeCut
from tsarch.records import Predictions, TickReport
from tsarch.run.bad_batch import save_bad_batch
from tsarch.run.checkpoint_keeper import CheckpointKeeper
from tsarch.run.evaluate import (
    JOINT_WEIGHTS,
    Evaluation,
    choose_and_evaluate,
    evaluate_modes,
    predict,
    selection_score,
)
from tsarch.run.interrupt import Interrupt
from tsarch.run.restarts import History
from tsarch.run.resume import ResumePoint, data_fingerprint, ranks_record
from tsarch.run.texts import Sample, with_texts
from tsarch.tasks.base import Metrics
from tsarch.tasks.registry import make_task
from tsarch.telling.run_folder import RunFolder
from tsarch.telling.step_table import StepRecord, StepTable, show_metric
from tsarch.telling.terminal import LiveNumbers, Reporter
from tsarch.topology import STAGES, Stage

_NUM_SAMPLES = 5
"""Generated texts that the summary shows."""


@dataclass
class _Best:
    """The best validation so far."""

    evaluation: Evaluation
    score: float
    epoch: int
    num_worse: int = 0


class Trainer:
    """One run from the first evaluation to `summary.json`."""

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        crew: Crew,
        folder: RunFolder,
        reporter: Reporter,
        store: Store,
        proposal: Proposal | None = None,
        point: ResumePoint | None = None,
        history: History | None = None,
    ) -> None:
        """`store`: where checkpoints go. `point`: the one that the run goes on from. `history`: of
        a run that has failed before in this process."""
        self._config = config
        self._prepared = prepared
        self._crew = crew
        self._folder = folder
        self._reporter = reporter
        self._proposal = proposal
        self._task = make_task(config.task.name, prepared.labels)
        self._plan = batch_plan(config, prepared.splits["train"])
        self._num_steps = num_training_steps(config, self._plan)
        self._steps = StepTable(crew.topology)
        self._best: _Best | None = None
        self._samples: list[Sample] = []
        self._before: dict[Mode, Metrics] | None = None
        self._history = history or History()
        self._started_s = self._history.started_s
        self._bad_rows: list[StepRecord] = []
        self._data = data_fingerprint(prepared)
        self._interrupt = Interrupt(reporter.say)
        self._keeper = CheckpointKeeper(
            config.checkpoint,
            store,
            crew,
            dump_config(config),
            self._model_folder,
            reporter.say,
            None if point is None else point.step,
        )
        rules = CutRules(
            store.url,
            config.checkpoint.every_steps,
            config.checkpoint.every_s,
            config.checkpoint.at_epochs,
        )
        self._pacer = Pacer(crew.pace, rules, time.monotonic())
        self._point = point
        if point is not None:
            self._restore(point)

    def run(self) -> dict[str, Any]:
        """Train; returns what `summary.json` holds.

        Raises:
            InterruptedRunError: SIGTERM or Ctrl-C came; a checkpoint has been written.
            RunFailedError: too many steps in a row were not finite, or a rank failed.
        """
        if self._point is None:
            self._before = self._measure_before()
        try:
            with self._interrupt, self._reporter.training(self._num_steps):
                self._train_epochs()
            self._keeper.finish()
        finally:
            self._keeper.close()
        self._crew.ask(RankApi.check_replicas, self._num_steps)
        stats = self._crew.stats()
        after = self._after()
        summary = self._summary(after, stats)
        self._folder.write_summary(summary)
        return summary

    def _train_epochs(self) -> None:
        resume, first = None, 0
        if self._point is not None:
            resume = self._point.resume(self._config)
            first = self._point.progress.epoch + self._point.progress.epoch_done
        for epoch, (start, stop) in list(enumerate(self._epochs()))[first:]:
            if self._patience_is_over():
                self._reporter.say(f"no better result in {self._best_age} validations: stop")
                break
            self._train(epoch, start, stop, resume)
            resume = None
            if not self._pacer.is_stopping:
                last = stop == self._num_steps
                score = None
                if last or (epoch + 1) % self._config.evaluation.every_epochs == 0:
                    score = self._validate(epoch, stop)
                self._end_epoch(score)
            if self._pacer.is_stopping:
                self._end_early()

    def _end_early(self) -> None:
        """Wait for the checkpoint and end the run.

        Raises:
            InterruptedRunError: always.
        """
        self._keeper.finish()
        assert self._interrupt.signal is not None
        number = self._interrupt.signal
        saved = f"saved at step {self._keeper.last}" if self._keeper.last else "NOT saved"
        raise InterruptedRunError(
            number,
            f"ended by {number.name}, {saved}. "
            f"Go on with: tsarch train {self._folder.path} --resume",
        )

    def _end_epoch(self, score: float | None) -> None:
        """Take the checkpoint that is due after an epoch; `score`: of its validation."""
        command = self._pacer.end_epoch(self._look())
        if command is not None and self._keeper.begin(command.cut):
            self._crew.send(command)
            for event in self._crew.events():
                self._handle(event, score)

    def _look(self) -> Situation:
        """What the pacer is to know."""
        interrupted = self._interrupt.signal is not None
        return Situation(time.monotonic(), interrupted, self._keeper.is_writing)

    def _state(self, place: TakeCut) -> DriverState:
        """What a checkpoint needs to know of the driver."""
        best = None
        if self._best is not None:
            best = BestRecord(
                metrics=cast(dict[str, Metrics], self._best.evaluation.metrics),
                joint_weight=self._best.evaluation.joint_weight,
                score=self._best.score,
                epoch=self._best.epoch,
                num_worse=self._best.num_worse,
            )
        return DriverState(
            epoch=place.epoch,
            tick=place.cut.step,
            epoch_done=place.epoch_done,
            ranks=ranks_record(self._config),
            data=self._data,
            before=cast(dict[str, Metrics] | None, self._before),
            best=best,
            table=self._steps.state(),
            num_rows=self._folder.lines.num_rows,
            num_evaluations=self._folder.lines.num_evaluations,
            wall_s=now_s() - self._started_s,
            resumes=self._num_resumes,
        )

    def _restore(self, point: ResumePoint) -> None:
        """Know what the driver knew."""
        progress = point.progress
        self._before = cast(dict[Mode, Metrics] | None, progress.before)
        if progress.best is not None:
            best = progress.best
            evaluation = Evaluation(cast(dict[Mode, Metrics], best.metrics), best.joint_weight)
            self._best = _Best(evaluation, best.score, best.epoch, best.num_worse)
        ranks = progress.ranks
        replicas = {Stage.TEACHER: ranks.teacher_replicas, Stage.STUDENT: ranks.student_replicas}
        self._steps.restore(progress.table, replicas)
        self._started_s = min(self._started_s, now_s() - progress.wall_s)
        self._pacer.resumed_at(point.step)

    @property
    def _num_resumes(self) -> int:
        return 0 if self._point is None else self._point.progress.resumes + 1

    def _epochs(self) -> list[tuple[int, int]]:
        """(first step, stop) of every epoch, up to the run's last step."""
        bounds = zip(self._plan.epoch_starts, self._plan.epoch_starts[1:])
        return [(a, min(b, self._num_steps)) for a, b in bounds if a < self._num_steps]

    def _measure_before(self) -> dict[Mode, Metrics] | None:
        if not self._config.evaluation.before:
            return None
        self._reporter.say("measuring the test split before training")
        return self._test(0.5, "before").metrics

    def _test(self, joint_weight: float, when: str) -> Evaluation:
        """Metrics of the test split; generated texts go to `texts.jsonl`."""
        predictions = self._predict("test", [joint_weight])
        split = self._prepared.splits["test"]
        result, self._samples = with_texts(
            self._crew,
            self._config,
            self._prepared,
            self._task,
            "test",
            evaluate_modes(self._task, split, predictions, joint_weight),
        )
        self._folder.write_evaluation("test", self._steps.totals.steps, result.metrics)
        self._folder.write_texts(when, [sample.as_json() for sample in self._samples])
        return result

    def _train(self, epoch: int, start: int, stop: int, resume: Resume | None) -> None:
        self._steps.start_span(now_s())
        first = start if resume is None else resume.tick
        self._pacer.begin(epoch, first, stop, self._crew.begin(start, stop, resume))
        for event in drive(self._crew, self._pacer, self._look, self._keeper.begin):
            self._handle(event)

    def _handle(self, event: Event, score: float | None = None) -> None:
        """What the ranks have done; `score`: of the validation before it."""
        match event:
            case Reports():
                self._note(event.reports)
                self._keeper.tend()
            case CutTaken(taken, stalls):
                self._keeper.taken(taken.cut, stalls, self._state(taken), score)
            case Draining(reason):
                self._reporter.say(f"{reason}: saving a checkpoint")
                self._pacer.cut_soon()

    def _note(self, reports: list[TickReport]) -> None:
        """Rows of the steps that are complete now."""
        epoch, totals, topology = self._pacer.epoch, self._steps.totals, self._crew.topology
        self._folder.write_trace(reports, epoch)
        for row in self._steps.add(reports, epoch):
            self._folder.write_row(row)
            self._history.trained(int(row["step"] or 0))
            shares = {s.value: totals.busy_share(s, topology) for s in STAGES}
            numbers = LiveNumbers(row, totals.tokens_per_s, shares)
            self._reporter.step(numbers, totals.steps, self._num_steps)
            self._check_numbers(row)

    def _check_numbers(self, row: StepRecord) -> None:
        """Count steps that were not finite.

        Raises:
            RunFailedError: too many in a row; names the file with the batch of the first.
        """
        num_bad, limit = self._steps.totals.bad_in_a_row, self._config.failure.max_bad_steps
        if num_bad == 0:
            self._bad_rows.clear()
            return
        self._bad_rows.append(row)
        step = int(row["step"] or 0)
        if num_bad == 1:
            self._reporter.say(
                f"warning: step {step}: loss or gradient is not finite; its update is left out"
            )
        if num_bad > limit:
            first = step - num_bad + 1
            path = save_bad_batch(
                self._folder.path / "bad-batches",
                self._config,
                self._prepared,
                self._plan,
                first,
                self._bad_rows,
            )
            raise RunFailedError(
                f"loss or gradient was not finite in {num_bad} steps in a row, from step {first} "
                f"on (failure.max_bad_steps: {limit}). The batch of step {first}: {path}"
            )

    def _validate(self, epoch: int, step: int) -> float:
        """Measure the validation split and keep the weights if they are the best; the score."""
        predictions = self._predict("validation", JOINT_WEIGHTS)
        split = self._prepared.splits["validation"]
        evaluation = choose_and_evaluate(self._task, split, predictions)
        self._folder.write_evaluation("validation", step, evaluation.metrics)
        name = self._task.main_metric
        monitor = self._config.evaluation.monitor
        own = selection_score(self._task, evaluation.metrics, monitor)
        better = self._best is None or own > self._best.score
        found = evaluation.metrics.items()
        values = " · ".join(f"{mode} {show_metric(m[name])}" for mode, m in found)
        kept = " (best so far: kept)" if better else ""
        self._reporter.say(f"epoch {epoch + 1}: validation {name} {values}{kept}")
        if better:
            self._best = _Best(evaluation, own, epoch + 1)
            self._keep(evaluation.joint_weight)
        else:
            assert self._best is not None
            self._best.num_worse += 1
        return own

    def _predict(self, name: str, joint_weights: list[float]) -> list[Predictions]:
        split = self._prepared.splits[name]
        return predict(self._config, self._task, self._crew, name, split, joint_weights)

    def _keep(self, joint_weight: float) -> None:
        """Write the weights aside, then put them in the place of `model/`."""
        aside = self._folder.path / "model.new"
        aside.mkdir(exist_ok=True)
        self._crew.ask(RankApi.save, aside)
        task = TaskFile(self._config.task.name, self._prepared.labels, joint_weight)
        save_description(aside, self._config, task)
        replace_folder(aside, self._model_folder)

    @property
    def _model_folder(self) -> Path:
        return self._folder.path / "model"

    @property
    def _best_age(self) -> int:
        return 0 if self._best is None else self._best.num_worse

    def _patience_is_over(self) -> bool:
        patience = self._config.evaluation.patience
        return patience is not None and self._best_age >= patience

    def _after(self) -> Evaluation:
        """The test split with the best weights."""
        assert self._best is not None
        self._reporter.say(f"measuring the test split with the weights of epoch {self._best.epoch}")
        self._crew.ask(RankApi.load, self._model_folder)
        weight = self._best.evaluation.joint_weight
        return self._test(weight, "after")

    def _summary(self, after: Evaluation, stats: dict[Stage, list[Any]]) -> dict[str, Any]:
        assert self._best is not None
        totals, topology = self._steps.totals, self._crew.topology
        steps = max(totals.steps, 1)
        return {
            "task": self._config.task.name,
            "schedule": self._config.schedule.name,
            "runner": self._config.topology.runner,
            **{stage.value: self._stage_summary(stage, stats) for stage in STAGES},
            "embedding_parameters": stats[Stage.TEACHER][0].stage_parameters["embedding"],
            "main_metric": self._task.main_metric,
            "lower_is_better": self._task.lower_is_better,
            "before": self._before,
            "after": after.metrics,
            "validation": self._best.evaluation.metrics,
            "best_epoch": self._best.epoch,
            "joint_weight": after.joint_weight,
            "steps": totals.steps,
            "tokens": totals.tokens,
            "wall_s": now_s() - self._started_s,
            "train_s": totals.train_s,
            "pipeline_s": totals.pipeline_s,
            "tokens_per_s": totals.tokens_per_s,
            "stage_busy_s": {s.value: totals.busy_s[s.name] / topology.replicas(s) for s in STAGES},
            "stage_busy_share": {s.value: totals.busy_share(s, topology) for s in STAGES},
            "bubble_fraction": totals.bubble_fraction(topology),
            "link_bytes_per_step": totals.link_bytes / steps,
            "tied_bytes_per_step": totals.tied_bytes / steps,
            "link_s_per_step": totals.link_s / steps,
            "link_wait_s_per_step": totals.link_wait_s / steps,
            "tied_s_per_step": totals.tied_s / steps,
            "tied_wait_s_per_step": totals.tied_wait_s / steps,
            "tied_max_abs_diff": max(s.tied_max_abs_diff for own in stats.values() for s in own),
            "peak_memory_bytes": {
                stage.value: max(s.peak_memory_bytes for s in own) for stage, own in stats.items()
            },
            "num_cut_tokens": {n: s.num_cut_tokens for n, s in self._prepared.splits.items()},
            "balance": None if self._proposal is None else self._proposal.as_json(),
            "samples": [sample.as_json() for sample in self._samples[:_NUM_SAMPLES]],
            "bad_steps": totals.bad_steps,
            "checkpoints": self._keeper.costs.summary(),
            "resumes": self._num_resumes,
            "restarts": len(self._history.restarts),
            "failures": self._history.as_json(),
        }

    def _stage_summary(self, stage: Stage, stats: dict[Stage, list[Any]]) -> dict[str, Any]:
        section = self._config.teacher if stage is Stage.TEACHER else self._config.student
        topology = self._config.topology
        local = topology.runner == "local"
        own = topology.teacher if stage is Stage.TEACHER else topology.student
        model: Any = section.model or section.config
        if stage is Stage.STUDENT and self._config.student.layers is not None:
            model = {"layers_of_teacher": self._config.student.layers}
        return {
            "model": model,
            "parameters": stats[stage][0].stage_parameters[stage.value],
            "replicas": self._crew.topology.replicas(stage),
            "zero_stage": None if local else own.zero_stage,
        }
