"""The run folder: `config.yaml`, `metrics.jsonl`, `evaluations.jsonl`, `tensorboard/`,
`trace.json`, `summary.json`, `model/`. (`report.html` is made from these: `run/report.py`.)"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tsarch.config import Config
from tsarch.config_loading import dump_config
from tsarch.errors import UserError
from tsarch.records import TickReport
from tsarch.run.metrics import Row
from tsarch.run.trace import TraceWriter
from tsarch.topology import Topology


def choose_folder(config: Config) -> Path:
    """A folder of the run's own: never one that holds something already.

    `run.name` gets a number if its folder is taken; an explicit `run.folder` must be free.

    Raises:
        UserError: `run.folder` is taken or can't be made.
    """
    folder = Path(config.run_folder).expanduser()
    if config.run.folder is not None and _is_taken(folder):
        raise UserError.single(
            f"run.folder: {folder}", "is not empty.", "Choose another folder or remove this one."
        )
    number = 2
    while _is_taken(folder):
        folder = Path(f"{config.run_folder}-{number}").expanduser()
        number += 1
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not os.access(existing, os.W_OK):
        raise UserError.single(f"run folder: {folder}", "can't be written.")
    return folder.absolute()


def _is_taken(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


class RunFolder:
    """Writes a run's files as it goes."""

    def __init__(self, path: Path, config: Config) -> None:
        from torch.utils.tensorboard import FileWriter

        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / "config.yaml", dump_config(config))
        self._metrics = (path / "metrics.jsonl").open("w", encoding="utf-8")
        self._evaluations = (path / "evaluations.jsonl").open("w", encoding="utf-8")
        self._curves = FileWriter(str(path / "tensorboard"))
        self._trace: TraceWriter | None = None
        if config.run.trace:
            topology = Topology.from_config(config.topology)
            self._trace = TraceWriter(path / "trace.json", topology)

    def write_row(self, row: Row) -> None:
        """One step: a line of `metrics.jsonl` and points of the curves."""
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        points = {
            f"train/{name}": float(value)
            for name, value in row.items()
            if value is not None and name not in ("step", "epoch")
        }
        self._write_points(points, int(row["step"] or 0))

    def write_trace(self, reports: list[TickReport], epoch: int) -> None:
        """Every instruction of some reports, if the run is traced."""
        if self._trace is not None:
            self._trace.add(reports, epoch)

    def write_evaluation(self, split: str, step: int, metrics: dict[Any, dict[str, float]]) -> None:
        """Metrics of all modes after `step` steps: a line of `evaluations.jsonl`, and curves."""
        row = {"split": split, "step": step, "metrics": metrics}
        self._evaluations.write(json.dumps(row) + "\n")
        self._evaluations.flush()
        points = {
            f"{split}/{mode}/{name}": value
            for mode, values in metrics.items()
            for name, value in values.items()
        }
        self._write_points(points, step)

    def write_texts(self, when: str, texts: list[dict[str, str]]) -> None:
        """Generated texts of the test split, a line of `texts.jsonl` each."""
        if texts:
            with (self.path / "texts.jsonl").open("a", encoding="utf-8") as file:
                for row in texts:
                    file.write(json.dumps({"when": when, **row}, ensure_ascii=False) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """`summary.json`."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._metrics.close()
        self._evaluations.close()
        self._curves.close()
        if self._trace is not None:
            self._trace.close()

    def _write_points(self, points: dict[str, float], step: int) -> None:
        """Points of several curves as one event: an event each would cost the driver more than
        all else that it does in a step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()]
        self._curves.add_summary(Summary(value=values), step)
