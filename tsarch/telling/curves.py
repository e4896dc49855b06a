"""Curves of steps and evaluations for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tsarch.config import Mode
from tsarch.records import TickReport
from tsarch.telling.step_table import StepRecord


class TensorBoard:
    """A tracker that writes events for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import FileWriter

        self._writer = FileWriter(str(folder))

    def ticks(self, reports: Sequence[TickReport], epoch: int) -> None:
        """There are no curves of ticks."""

    def step(self, row: StepRecord) -> None:
        """A point of `train/…` for each number."""
        points = {
            f"train/{name}": float(value)
            for name, value in row.items()
            if value is not None and name not in ("step", "epoch")
        }
        self._write(points, int(row["step"] or 0))

    def evaluation(
        self, split: str, step: int, metrics: Mapping[Mode, Mapping[str, float]]
    ) -> None:
        """A point of `SPLIT/MODE/METRIC` for each."""
        points = {
            f"{split}/{mode}/{name}": value
            for mode, values in metrics.items()
            for name, value in values.items()
        }
        self._write(points, step)

    def texts(self, when: str, texts: Sequence[Mapping[str, str]]) -> None:
        """There are no curves of texts."""

    def rewind(self, step: int, num_evaluations: int) -> None:
        """Let TensorBoard drop the points from `step` on."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        for event in (Event(file_version="brain.Event:2"), Event(session_log=start)):
            event.step = step
            self._writer.add_event(event, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _write(self, points: Mapping[str, float], step: int) -> None:
        """Points of several curves as one event: an event each would cost the driver more than
        all else that it does in a step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()]
        self._writer.add_summary(Summary(value=values), step)
