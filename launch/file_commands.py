"""The commands that need no more than files: `schema`, `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsarch.config_loading import config_schema
from tsarch.errors import UserError


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


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (schema, compare):
        app.command()(command)
