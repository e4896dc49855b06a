"""The run folder: `config.yaml`, `metrics.jsonl`, `evaluations.jsonl`, `tensorboard/`,
`trace.json`, `summary.json`, `model/`. (`report.html` is made from these: `telling/report.py`.)"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from tsarch.config import Config
from tsarch.config_loading import dump_config
from tsarch.errors import UserError, one_line
from tsarch.records import TickReport
from tsarch.redaction import redact_urls
from tsarch.telling.step_table import StepRecord
from tsarch.telling.trace import TraceWriter
from tsarch.topology import Topology


def choose_folder(config: Config) -> Path:
    """A folder of the run's own: never one that holds something already.

    `run.name` gets a number if its folder is taken; an explicit `run.folder` must be free.

    Raises:
        UserError: `run.folder` is taken or can't be made.
    """
    try:
        return _free_folder(config)
    except (OSError, RuntimeError) as error:  # a name that is too long; `~nobody`
        raise UserError.single(f"run folder: {config.run_folder}", f"{one_line(error)}.") from None


def _free_folder(config: Config) -> Path:
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


def resumed_folder(config: Config) -> Path:
    """The folder of the run that `config` started last: `run.folder`, or of the folders that its
    `run.name` got the one with the highest number.

    Raises:
        UserError: there is none, or its run is complete.
    """
    try:
        folder = Path(config.run_folder).expanduser().absolute()
        folder.exists()
    except (OSError, RuntimeError) as error:
        raise UserError.single(f"run folder: {config.run_folder}", f"{one_line(error)}.") from None
    if config.run.folder is None:
        numbered = re.compile(rf"^{re.escape(folder.name)}(?:-(\d+))?$")
        matches = [m for p in folder.parent.glob("*") if (m := numbered.match(p.name))]
        if matches:
            newest = max(matches, key=lambda m: int(m.group(1) or 1))
            folder = folder.parent / newest.string
    if not _is_taken(folder):
        raise UserError.single(
            f"--resume: {folder}", "nothing to resume: there is no run.", "Start without --resume."
        )
    if (folder / "summary.json").exists():
        raise UserError.single(f"--resume: {folder}", "nothing to resume: the run is complete.")
    return folder


def _is_taken(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


@dataclass
class Lines:
    """How much of a run is in its files."""

    num_rows: int = 0
    num_evaluations: int = 0
    next_step: int = 0
    """First step that is not in them."""


def _open(path: Path, num_lines: int) -> TextIO:
    """A file to write lines to, after its first `num_lines` (or as many as it has).

    Raises:
        UserError: one of them is damaged.
    """
    if not num_lines or not path.exists():
        return path.open("w", encoding="utf-8")
    with path.open("rb") as file:
        kept = list(islice(file, num_lines))
    for number, line in enumerate(kept, 1):
        if not _is_object(line):
            hint = "Restore the file, or remove it: the run goes on without these rows."
            raise UserError.single(f"{path}:{number}", "is not a row of a run.", hint)
    write_atomically(path, b"".join(kept).decode("utf-8"))
    return path.open("a", encoding="utf-8")


def _is_object(line: bytes) -> bool:
    """Whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _set_aside(path: Path) -> None:
    """Rename `trace.json` of the time before a restart to `trace-1.json`, or the next number."""
    if path.exists():
        names = (path.with_stem(f"{path.stem}-{number}") for number in count(1))
        path.rename(next(name for name in names if not name.exists()))


class RunFolder:
    """Writes a run's files as it goes."""

    def __init__(self, path: Path, config: Config, resumed_at: Lines | None = None) -> None:
        """`resumed_at`: what the run had written when it was saved; what it wrote later goes."""
        from torch.utils.tensorboard import FileWriter

        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / "config.yaml", dump_config(config))
        self.lines = resumed_at or Lines()
        self._metrics = _open(path / "metrics.jsonl", self.lines.num_rows)
        self._evaluations = _open(path / "evaluations.jsonl", self.lines.num_evaluations)
        self._curves = FileWriter(str(path / "tensorboard"))
        if resumed_at is not None:
            self._purge_curves(resumed_at.next_step)
        self._trace: TraceWriter | None = None
        if config.run.trace:
            topology = Topology.from_config(config.topology)
            if resumed_at is not None:
                _set_aside(path / "trace.json")
            self._trace = TraceWriter(path / "trace.json", topology)

    def write_row(self, row: StepRecord) -> None:
        """One step: a line of `metrics.jsonl` and points of the curves."""
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        self.lines.num_rows += 1
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
        self.lines.num_evaluations += 1
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
        text = redact_urls(json.dumps(summary, indent=2))
        write_atomically(self.path / "summary.json", text + "\n")

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

    def _purge_curves(self, step: int) -> None:
        """Let TensorBoard drop the points from `step` on, of a run that went further."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        for event in (Event(file_version="brain.Event:2"), Event(session_log=start)):
            event.step = step
            self._curves.add_event(event, step)

    def _write_points(self, points: dict[str, float], step: int) -> None:
        """Points of several curves as one event: an event each would cost the driver more than
        all else that it does in a step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()]
        self._curves.add_summary(Summary(value=values), step)
