"""What the user sees while a run goes on: phases, a live line, and the table at the end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from tsarch.config import MODES
from tsarch.redaction import redact
from tsarch.telling.logs import DriverLog
from tsarch.telling.step_table import StepRecord, show_metric

_LINE_EVERY_S = 15.0
_RECENT_STEPS = 50
_ANY_WIDTH = 10_000
_FILE_WIDTH = 132
"""Characters of a line in a file or pipe, which has no width of its own: the widest table fits."""
_SAMPLE_CHARACTERS = 240
_CAPTION = "student: fed by the teacher · joint: both combined · student_alone: without the teacher"


@dataclass(frozen=True)
class LiveNumbers:
    """The numbers beside the progress bar."""

    row: StepRecord
    tokens_per_s: float
    busy_share: dict[str, float]

    def text(self, losses: str) -> str:
        """One line."""
        busy = " ".join(
            f"{stage[0].upper()} {share:.0%}" for stage, share in self.busy_share.items()
        )
        return f"{losses} · {self.tokens_per_s:,.0f} tokens/s · busy {busy}"


class RecentLosses:
    """Means of the losses of the last 50 steps: one batch's own goes up and down with its texts."""

    def __init__(self) -> None:
        self._rows: deque[StepRecord] = deque(maxlen=_RECENT_STEPS)

    def add(self, row: StepRecord) -> None:
        """One more step."""
        self._rows.append(row)

    def text(self) -> str:
        """The means, of those that were finite, and of how many steps they are."""
        means = []
        for stage in ("teacher", "student"):
            values = [v for row in self._rows if (v := row.get(f"loss_{stage}")) is not None]
            means += [f"{stage} {fmean(values):.3f}"] if values else []
        return f"loss ({len(self._rows)}-step mean) {' '.join(means)}"


class Reporter:
    """Writes to the terminal: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True, emoji=False)
        if console is None and not self.console.is_terminal:
            self.console.width = _FILE_WIDTH
        self._bar: Progress | None = None
        self._task: Any = None
        self._losses = RecentLosses()
        self._last_line_s = 0.0
        self._started_s = time.time()
        self._log: DriverLog | None = None

    def keep_in(self, logs: Path) -> None:
        """Write what is said from now on into a file of this folder too."""
        self._log = DriverLog(logs)

    def say(self, text: str) -> None:
        """One line about what happens now."""
        elapsed_s = time.time() - self._started_s
        self.console.print(f"[dim]{elapsed_s:6.1f} s[/dim]  ", end="")
        self.console.print(redact(text), markup=False)
        if self._log is not None:
            self._log.add(redact(text))

    @contextmanager
    def training(self, num_steps: int) -> Iterator[None]:
        """Show the bar while training lasts."""
        self._losses = RecentLosses()
        self._bar = Progress(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        with self._bar:
            self._task = self._bar.add_task("train", total=num_steps, numbers="")
            yield
        self._bar = None

    def step(self, numbers: LiveNumbers, num_done: int, num_steps: int) -> None:
        """A step is done."""
        assert self._bar is not None
        self._losses.add(numbers.row)
        text = numbers.text(self._losses.text())
        self._bar.update(self._task, completed=num_done, numbers=text)
        now_s = time.time()
        if self.console.is_terminal or now_s - self._last_line_s < _LINE_EVERY_S:
            return
        self._last_line_s = now_s
        left = self._bar.tasks[0].time_remaining
        eta = "" if left is None else f" · {left:.0f} s left"
        self.say(f"step {num_done}/{num_steps} · {text}{eta}")

    def sample(self, texts: dict[str, str]) -> None:
        """One generated text of every mode, below its source and reference."""
        table = Table(show_header=False, box=None, padding=(0, 1))
        for name, text in texts.items():
            shown = text if len(text) <= _SAMPLE_CHARACTERS else text[:_SAMPLE_CHARACTERS] + "…"
            table.add_row(Text(name, "dim"), Text(shown))
        self.console.print(table)

    def table(
        self, title: str, columns: dict[str, dict[Any, dict[str, float]]], metrics: tuple[str, ...]
    ) -> None:
        """Modes as rows; for every column (such as before, after) its metrics. Columns that don't
        fit beside each other are tables of their own."""
        table = _table(title, columns, metrics)
        if (
            len(columns) > 1
            and Measurement.get(
                self.console, self.console.options.update_width(_ANY_WIDTH), table
            ).maximum
            > self.console.width
        ):
            for name, values in columns.items():
                self.table(f"{title}, {name}", {"": values}, metrics)
            return
        self.console.print(table)

    def seconds(self, phases: Mapping[str, float]) -> None:
        """What the seconds of a command went into."""
        table = Table("phase", title=Text("seconds"), title_justify="left")
        table.add_column("s", justify="right")
        for name, seconds in phases.items():
            table.add_row(name, f"{seconds:.2f}")
        table.add_section()
        table.add_row("all", f"{sum(phases.values()):.2f}")
        self.console.print(table)


def _table(
    title: str, columns: dict[str, dict[Any, dict[str, float]]], metrics: tuple[str, ...]
) -> Table:
    table = Table(title=Text(title), title_justify="left", caption=_CAPTION)
    table.add_column("mode", no_wrap=True)
    measured = [own for values in columns.values() for own in values.values()]
    metrics = tuple(name for name in metrics if all(name in own for own in measured))
    for column in columns:
        for metric in metrics:
            table.add_column(f"{column}\n{metric}".strip(), justify="right", no_wrap=True)
    for mode in MODES:
        if all(mode in values for values in columns.values()):
            cells = [show_metric(v[mode][m]) for v in columns.values() for m in metrics]
            table.add_row(mode, *cells)
    return table
