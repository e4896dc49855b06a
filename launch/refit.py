"""`tsarch refit`, `history`, `rollback`, `watch`: a run's versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsarch.config import Config
from tsarch.errors import UserError
from tsarch.launch.training import quieten, run_training

if TYPE_CHECKING:
    from tsarch.refit.lineage import Lineage
    from tsarch.refit.records import Record
    from tsarch.refit.refit import Train
    from tsarch.refit.settings import Request
    from tsarch.refit.watching import WatchOptions

NOT_TAKEN = 3
"""Exit status where the old version stays."""


def training(address: str | None) -> Train:
    """What trains a version."""

    def train(config: Config, resume: bool) -> Any:
        return run_training(config, address, resume)

    return train


def refit_run(
    run: Path, data: Sequence[str], request: Request, again: bool, address: str | None
) -> int:
    """Refit a run on new rows and say what came of it; the exit status.

    Raises:
        UserError: the run, the data or the request holds mistakes.
    """
    quieten()
    from tsarch.launch.training import cluster_address
    from tsarch.refit.lineage import Lineage
    from tsarch.refit.refit import Known, Refit
    from tsarch.telling.terminal import Reporter

    cluster_address(address)
    lineage, reporter = Lineage(run), Reporter()
    with lineage.locked():
        found = Refit(lineage, request, training(address), reporter.say).run(data, again)
    if isinstance(found, Known):
        record = found.record
        what = f"has the rows of {record.version} ({_outcome(record)} on {record.decided})."
        hint = "Nothing is done; --again uses them once more."
        raise UserError.single(f"--data {' '.join(data)}", what, hint)
    reporter.say(f"{record_line(found)}")
    return 0 if found.accepted else NOT_TAKEN


def record_line(record: Record) -> str:
    """What came of a refit, in a line."""
    if record.accepted:
        return f"{record.version} is current now: {record.reason}"
    return f"{record.version} isn't taken, {record.parent} stays: {record.reason}"


def show_history(run: Path, as_json: bool) -> None:
    """Print a run's versions.

    Raises:
        UserError: it is no finished run.
    """
    from tsarch.refit.lineage import Lineage

    rows = history_rows(Lineage(run))
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"versions of {run}", box=None, pad_edge=False)
    for column in ("version", "when", "parent", "rows", "test", "held out", "outcome"):
        table.add_column(column, overflow="fold")
    for row in rows:
        mark = " (current)" if row["current"] else ""
        scores = [_change(row["scores"].get(name)) for name in ("test", "held_out")]
        new = row["rows"].get("new")
        table.add_row(
            f"{row['version']}{mark}",
            (row["decided"] or row["created"] or "").replace("+00:00", ""),
            row["parent"] or "",
            "" if new is None else f"{new:,} of {Path(row['source']).name}",
            *scores,
            row["outcome"],
        )
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    for row in rows:
        if row["reason"]:
            console.print(f"{row['version']}: {row['reason']}", soft_wrap=True, markup=False)


def history_rows(lineage: Lineage) -> list[dict[str, Any]]:
    """A row for every version, in order."""
    from tsarch.refit.lineage import FIRST
    from tsarch.refit.records import Record

    changes: dict[str, list[dict[str, Any]]] = {}
    for change in lineage.changes:
        changes.setdefault(change["version"], []).append(change)
    first = Record(FIRST, "", "", "", "", {}, reason="as it was trained", accepted=True)
    return [
        {
            **asdict(own),
            "outcome": _outcome(own),
            "current": own.version == lineage.current,
            "has_weights": lineage.has_weights(own.version),
            "changes": changes.get(own.version, []),
        }
        for own in (first, *lineage.records())
    ]


def roll_back(run: Path, version: str | None) -> None:
    """Make another version the current one.

    Raises:
        UserError: there is no such version, or its weights are gone.
    """
    from tsarch.refit.lineage import FIRST, Lineage
    from tsarch.telling.terminal import Reporter

    lineage = Lineage(run)
    with lineage.locked():
        known = [FIRST, *(own.version for own in lineage.records() if own.accepted is not None)]
        current = lineage.current
        if version is None:
            parents = [own.parent for own in lineage.ancestors(current)]
            if not parents:
                what = f"{current} is the first version: there is none before it."
                raise UserError.single(str(run), what)
            version = parents[0]
        if version not in known:
            raise UserError.single(str(run), f"has no version {version}: {', '.join(known)}.")
        if not lineage.has_weights(version):
            what = f"the weights of {version} were removed (--keep)."
            raise UserError.single(str(run), what, "Choose another: tsarch history RUN.")
        if version != current:
            lineage.make_current(version, f"rolled back from {current}")
    Reporter().say(f"{version} is current now" + (" already" if version == current else ""))


def watch_folder(
    folder: Path,
    run: Path,
    request: Request,
    options: WatchOptions,
    address: str | None,
    server: tuple[str, str | None, Path | None] | None,
) -> None:
    """Refit a run on every new file of a folder.

    Args:
        server: URL of one that serves the run, the run's name there (None: its folder's), and the
            file with its token.

    Raises:
        UserError: the run can't be refitted, whatever the file.
    """
    quieten()
    from tsarch.launch.training import cluster_address
    from tsarch.refit.lineage import Lineage
    from tsarch.refit.server import ServedRun
    from tsarch.refit.settings import sources
    from tsarch.refit.watching import Watch
    from tsarch.telling.terminal import Reporter

    cluster_address(address)
    lineage, reporter = Lineage(run), Reporter()
    sources(lineage.run, request, ["-"])  # so that overrides are checked now
    served = None
    if server is not None:
        url, name, token_file = server
        served = ServedRun.of(url, name or lineage.run.name, token_file)
    train = training(address)
    Watch(folder, lineage, request, options, train, reporter.say, served).run()


def _outcome(record: Record) -> str:
    if record.accepted is None:
        return "unfinished"
    return "taken" if record.accepted else "not taken"


def _change(scores: dict[str, float] | None) -> str:
    return "" if scores is None else f"{scores['old']:.4f} → {scores['new']:.4f}"
