"""The commands that need no more than files: `schema`, `compare`, `logs`."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from tsarch.config_loading import config_schema
from tsarch.errors import UserError
from tsarch.redaction import redact


def schema(
    output: Annotated[Path | None, typer.Argument(help="File to write. Default: print.")] = None,
) -> None:
    """Write the JSON Schema of the config file, for editors."""
    if output is None:
        typer.echo(config_schema(), nl=False)
        return
    try:
        output.write_text(config_schema(), encoding="utf-8")
    except OSError as error:
        raise UserError.single(str(output), f"can't be written ({error.strerror}).") from None


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, finished or not.")],
    html: Annotated[
        Path | None, typer.Option(help="Page to write too, with curves; it needs no other file.")
    ] = None,
) -> None:
    """Show where the configs of runs differ, what they reached in every mode, and how fast."""
    from tsarch.launch.training import quieten
    from tsarch.run.versions import current_folder
    from tsarch.telling.compare_table import print_comparison
    from tsarch.telling.compared_runs import read_runs
    from tsarch.telling.comparison import compare_runs
    from tsarch.telling.terminal import Reporter

    quieten()
    if len(runs) < 2:
        raise UserError.single("tsarch compare", "compares two runs or more.", "Name another one.")
    found = read_runs([current_folder(run) for run in runs])
    comparison = compare_runs(found)
    reporter = Reporter()
    print_comparison(reporter.console, comparison, found)
    if html is not None:
        from tsarch.telling.compare_page import write_comparison

        try:
            write_comparison(html, comparison, found)
        except OSError as error:
            what = f"can't be written ({error.strerror})."
            raise UserError.single(f"--html {html}", what) from None
        reporter.say(f"page: {html}")


def logs(
    run: Annotated[Path, typer.Argument(help="Folder of a run, finished or not.")],
    rank: Annotated[
        list[int], typer.Option(help="This rank alone. May be given again. Default: all.")
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    grep: Annotated[str, typer.Option(help="Lines alone that have this regular expression.")] = "",
    since: Annotated[
        str, typer.Option(help="Lines from then on: 90s, 10m, 2h, 3d ago, or 2026-05-01T14:30.")
    ] = "",
) -> None:
    """Print what all ranks and the driver of a run have printed, in order of time."""
    from tsarch.telling.logs import read_logs

    for line in read_logs(run / "logs", rank, _time_s(since), grep):
        moment = datetime.fromtimestamp(line.time_s).isoformat(" ", "milliseconds")
        typer.echo(redact(f"{moment}  {line.source}  {line.text}"))


def _time_s(since: str) -> float:
    """Seconds since 1970; of an empty text 0.

    Raises:
        UserError: it is no time.
    """
    ago = re.fullmatch(r"(\d+)([smhd])", since)
    try:
        if ago is not None:
            seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}[ago[2]]
            return datetime.now().timestamp() - int(ago[1]) * seconds
        return datetime.fromisoformat(since).timestamp() if since else 0.0
    except (ValueError, OverflowError, OSError):
        what = "is no time. Such as 10m, 2h or 2026-05-01T14:30."
        raise UserError.single(f"--since {since}", what) from None


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (schema, compare, logs):
        app.command()(command)
