"""Curves of steps and evaluations for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import FileWriter

from tsarch.config import Mode
from tsarch.records import TickReport
from tsarch.telling.step_table import StepRecord
from tsarch.telling.tracker import Metrics, TrackedRun, evaluation_points, step_points


class TensorBoard:
    """A tracker that writes events for TensorBoard into the folder `tensorboard` of the run."""

    def __init__(self, run: TrackedRun) -> None:
        self._writer = FileWriter(str(run.folder / "tensorboard"))

    def ticks(self, reports: Sequence[TickReport], epoch: int) -> None:
        """There are no curves of ticks."""

    def step(self, row: StepRecord) -> None:
        """See `step_points`."""
        self._write(step_points(row), int(row["step"] or 0))

    def evaluation(self, split: str, step: int, metrics: Mapping[Mode, Metrics]) -> None:
        """See `evaluation_points`."""
        self._write(evaluation_points(split, metrics), step)

    def texts(self, when: str, texts: Sequence[Mapping[str, str]]) -> None:
        """There are no curves of texts."""

    def rewind(self, step: int, num_evaluations: int) -> None:
        """Let TensorBoard drop the points from `step` on."""
        start = SessionLog(status=SessionLog.START)
        for event in (Event(file_version="brain.Event:2"), Event(session_log=start)):
            event.step = step
            self._writer.add_event(event, step)

    def close(self, is_complete: bool) -> None:
        """Write what is left."""
        self._writer.close()

    def _write(self, points: Mapping[str, float], step: int) -> None:
        """Points of several curves as one event: an event each would cost more than all else that
        is done about a step."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()]
        self._writer.add_summary(Summary(value=values), step)
