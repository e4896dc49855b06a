"""What the driver of a run knows: its steps so far, the best weights, how long it took. All of it
goes into checkpoints, is told to the trackers as it comes in, and ends up in the summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from tsarch.blueprint import Blueprint
from tsarch.checkpoint.driver_state import DriverState
from tsarch.config import Mode
from tsarch.prepare import Prepared
from tsarch.rank.pacer import TakeCut
from tsarch.records import TickReport
from tsarch.run.restarts import History
from tsarch.run.resume import ResumePoint, data_fingerprint, models_fingerprint, ranks_record
from tsarch.run.selection import Selection
from tsarch.run.self_score import can_tell
from tsarch.tasks.base import Metrics, Task
from tsarch.telling.step_table import StepRecord, StepTable, Totals
from tsarch.telling.trackers import Trackers
from tsarch.topology import Topology


class Ledger:
    """Of one run."""

    def __init__(
        self,
        blueprint: Blueprint,
        topology: Topology,
        prepared: Prepared,
        task: Task,
        trackers: Trackers,
        history: History,
    ) -> None:
        """`history`: of the run's failures so far."""
        rules = blueprint.evaluation
        tells = can_tell(task, prepared.splits["validation"])
        self.selection = Selection(task, blueprint.monitor, rules.patience, tells)
        self.trackers = trackers
        self.history = history
        self.before: dict[Mode, Metrics] | None = None
        """Metrics of the test split before training."""
        self.num_resumes = 0
        self._table = StepTable(topology)
        self._ranks = ranks_record(blueprint)
        self._data = data_fingerprint(prepared)
        self._models = models_fingerprint(blueprint)

    @property
    def totals(self) -> Totals:
        """Sums over the steps so far."""
        return self._table.totals

    def start_span(self, now_s: float) -> None:
        """Training begins (again) now; time before does not count."""
        self._table.start_span(now_s)

    def add(self, reports: Sequence[TickReport], epoch: int) -> Iterator[StepRecord]:
        """Take reports in; the rows of the steps that they complete."""
        self.trackers.ticks(reports, epoch)
        for row in self._table.add(list(reports), epoch):
            self.trackers.step(row)
            self.history.trained(int(row["step"] or 0))
            yield row

    def state(self, place: TakeCut) -> DriverState:
        """What a checkpoint needs to know of the driver."""
        return DriverState(
            epoch=place.epoch,
            tick=place.cut.step,
            epoch_done=place.epoch_done,
            ranks=self._ranks,
            data=self._data,
            models=self._models,
            before=cast(dict[str, Metrics] | None, self.before),
            best=self.selection.record(),
            table=self._table.state(),
            num_rows=self.totals.steps,
            num_evaluations=self.trackers.num_evaluations,
            wall_s=self.history.wall_s,
            resumes=self.num_resumes,
        )

    def restore(self, point: ResumePoint) -> None:
        """Know what the driver knew at a checkpoint. (`Trackers.rewind` is for who opens them.)"""
        progress = point.progress
        self.before = cast(dict[Mode, Metrics] | None, progress.before)
        self.num_resumes = progress.resumes + 1
        self.selection.restore(progress.best)
        self._table.restore(progress.table, progress.ranks.topology)
        self.history.resumed(progress.wall_s)
