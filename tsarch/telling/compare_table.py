"""A comparison of runs on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tsarch.telling.compared_runs import ComparedRun
from tsarch.telling.comparison import Comparison, Line, validation_curves

_BARS = "▁▂▃▄▅▆▇█"


def print_comparison(console: Console, found: Comparison, runs: Sequence[ComparedRun]) -> None:
    """Tables with a column a run, the best of each line in bold."""
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    tables = {
        "keys of the config that differ": found.keys,
        "scores": found.metrics,
        "speed": found.speed,
        "the main metric at every validation, one scale a line": _sparklines(runs),
    }
    for title, lines in tables.items():
        if lines:
            console.print(_table(title, found.runs, lines))
        else:
            console.print(f"{title}: none", markup=False)


def _table(title: str, runs: Sequence[str], lines: Sequence[Line]) -> Table:
    """Names that the line before has too are left out."""
    table = Table(title=Text(title), title_justify="left")
    for _ in lines[0].names:
        table.add_column("", overflow="fold")
    for run in runs:
        table.add_column(Text(run), justify="right", overflow="fold")
    before: tuple[str, ...] = ()
    for line in lines:
        repeated = [line.names[: i + 1] == before[: i + 1] for i in range(len(line.names))]
        names = (Text("" if same else name) for same, name in zip(repeated, line.names))
        cells = (Text(c, "bold" if i in line.best else "") for i, c in enumerate(line.cells))
        table.add_row(*names, *cells)
        before = line.names
    return table


def _sparklines(runs: Sequence[ComparedRun]) -> tuple[Line, ...]:
    lines = []
    for names, curves in validation_curves(runs).items():
        values = [value for curve in curves for value in curve.values]
        low, span = min(values), max(values) - min(values) or 1.0
        bars = {
            curve.run: "".join(
                _BARS[round((value - low) / span * (len(_BARS) - 1))] for value in curve.values
            )
            for curve in curves
        }
        lines.append(Line(names, tuple(bars.get(run.label, "") for run in runs)))
    return tuple(lines)
