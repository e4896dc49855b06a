"""What a run writes as it goes, a JSON object a line: `metrics.jsonl`, `evaluations.jsonl`,
`texts.jsonl`; and `trace.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from tsarch.config import Mode
from tsarch.errors import UserError
from tsarch.records import TickReport
from tsarch.telling.run_folder import write_atomically
from tsarch.telling.step_table import StepRecord
from tsarch.telling.trace import TraceWriter
from tsarch.topology import Topology


class JsonFiles:
    """A tracker that writes the files of the run folder."""

    def __init__(self, folder: Path, topology: Topology, trace: bool) -> None:
        """`trace`: write `trace.json` too."""
        self._folder = folder
        self._topology = topology
        self._is_traced = trace
        self._trace: TraceWriter | None = None
        self._open: dict[str, TextIO] = {}
        for name in ("metrics.jsonl", "evaluations.jsonl"):  # empty is not missing
            (folder / name).touch()

    def ticks(self, reports: Sequence[TickReport], epoch: int) -> None:
        """Every instruction, if the run is traced."""
        if self._is_traced:
            if self._trace is None:
                self._trace = TraceWriter(self._folder / "trace.json", self._topology)
            self._trace.add(reports, epoch)

    def step(self, row: StepRecord) -> None:
        """A line of `metrics.jsonl`."""
        self._write("metrics.jsonl", row)

    def evaluation(
        self, split: str, step: int, metrics: Mapping[Mode, Mapping[str, float]]
    ) -> None:
        """A line of `evaluations.jsonl`."""
        self._write("evaluations.jsonl", {"split": split, "step": step, "metrics": metrics})

    def texts(self, when: str, texts: Sequence[Mapping[str, str]]) -> None:
        """A line of `texts.jsonl` each."""
        for row in texts:
            self._write("texts.jsonl", {"when": when, **row})

    def rewind(self, step: int, num_evaluations: int) -> None:
        """Drop the lines that will come again, and set a trace aside.

        Raises:
            UserError: one of the lines that stay is damaged.
        """
        folder = self._folder
        _cut(folder / "metrics.jsonl", step > 0, lambda _, row: _step(row) >= step - 1)
        _cut(folder / "evaluations.jsonl", num_evaluations > 0, lambda n, _: n == num_evaluations)
        _keep_lines(folder / "texts.jsonl", b'{"when": "before"' if num_evaluations else None)
        if self._is_traced:
            _set_aside(folder / "trace.json")

    def close(self, is_complete: bool) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()
        if self._trace is not None:
            self._trace.close()

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        if name not in self._open:
            self._open[name] = (self._folder / name).open("a", encoding="utf-8")
        self._open[name].write(json.dumps(row, ensure_ascii=name != "texts.jsonl") + "\n")
        self._open[name].flush()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of such a file; without the last one if it is torn, as a run that was ended leaves
    it; none if there is no file.

    Raises:
        UserError: another row is damaged.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return [_row(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def _cut(path: Path, keeps_some: bool, is_last: Callable[[int, dict[str, Any]], bool]) -> None:
    """Drop all lines behind the last that stays; what is behind it may be torn."""
    if not path.exists():
        return
    kept = []
    with path.open("rb") as file:
        for number, line in enumerate(file if keeps_some else (), 1):
            kept.append(line)
            if is_last(number, _row(line, f"{path}:{number}")):
                break
    write_atomically(path, b"".join(kept).decode("utf-8"))


def _keep_lines(path: Path, start: bytes | None) -> None:
    """Keep the lines that start so; None: none."""
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if start is not None and line.startswith(start)]
        write_atomically(path, b"".join(kept).decode("utf-8"))


def _step(row: dict[str, Any]) -> int:
    step = row.get("step")
    return step if isinstance(step, int) else -1


def _row(line: bytes, place: str) -> dict[str, Any]:
    """The object in a line.

    Raises:
        UserError: there is none.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        hint = "Restore the file, or remove it: the run goes on without these rows."
        raise UserError.single(place, "is not a row of a run.", hint)
    return row


def _set_aside(path: Path) -> None:
    """Rename `trace.json` of the time before a restart to `trace-1.json`, or the next number."""
    if path.exists():
        names = (path.with_stem(f"{path.stem}-{number}") for number in count(1))
        path.rename(next(name for name in names if not name.exists()))
