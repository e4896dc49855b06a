"""The commands that make, watch for, show and choose versions of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Replay = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the old documents to train on again.")
]
HeldOut = Annotated[
    float, typer.Option(min=0, max=0.5, help="Share of the new documents to measure only.")
]
Margin = Annotated[float, typer.Option(min=0, help="Points that may be lost on the old test set.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the mixed data.")]
RateFactor = Annotated[float, typer.Option(min=1e-9, help="Factor on the run's learning rates.")]
Keep = Annotated[int, typer.Option(min=1, help="Newest versions whose weights are kept.")]
Overrides = Annotated[
    list[str], typer.Option("--set", help="Change a key: --set topology.runner=local.")
]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join, as for `train`.")]


def refit(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: Annotated[
        list[str],
        typer.Option(help="File or pattern of new rows; given twice: parallel texts."),
    ],
    replay: Replay = 0.5,
    held_out: HeldOut = 0.2,
    margin: Margin = 1.0,
    epochs: Epochs = 3,
    rate_factor: RateFactor = 0.3,
    keep: Keep = 5,
    again: Annotated[
        bool, typer.Option("--again", help="Also if the same rows were given before.")
    ] = False,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nobody changes it
    address: Address = None,
) -> None:
    """Go on with a run on new data; the new version becomes the current one unless it is worse.

    Exit status 3: it is worse, and the old one stays.
    """
    from tsarch.launch.refit import refit_run
    from tsarch.refit.settings import Request

    request = Request(replay, held_out, margin, epochs, rate_factor, keep, tuple(overrides))
    raise typer.Exit(refit_run(run, data, request, again, address))


def watch(
    folder: Annotated[Path, typer.Argument(help="Folder that new files come into.")],
    run: Annotated[Path, typer.Option(help="Folder of a finished run.")],
    pattern: Annotated[
        list[str], typer.Option(help="Names of files to use, such as *.jsonl; may be repeated.")
    ] = ["*"],  # noqa: B006
    poll_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
    settle_s: Annotated[
        float, typer.Option(min=0.1, help="Seconds that a file must not have changed for.")
    ] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="End when the files that are there are done.")
    ] = False,
    server: Annotated[
        str | None, typer.Option(help="URL of a server of the run, to tell of new versions.")
    ] = None,
    served_as: Annotated[
        str | None, typer.Option(help="The run's name there. Default: its folder's.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with a token of the server's.")
    ] = None,
    replay: Replay = 0.5,
    held_out: HeldOut = 0.2,
    margin: Margin = 1.0,
    epochs: Epochs = 3,
    rate_factor: RateFactor = 0.3,
    keep: Keep = 5,
    overrides: Overrides = [],  # noqa: B006
    address: Address = None,
) -> None:
    """Refit a run on every new file of a folder, each exactly once."""
    from tsarch.launch.refit import watch_folder
    from tsarch.refit.settings import Request
    from tsarch.refit.watching import WatchOptions

    request = Request(replay, held_out, margin, epochs, rate_factor, keep, tuple(overrides))
    options = WatchOptions(tuple(pattern), poll_s, settle_s, once)
    served = None if server is None else (server, served_as, token_file)
    watch_folder(folder, run, request, options, address, served)


def history(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a run's versions: of which data, what they score, and why they were taken or not."""
    from tsarch.launch.refit import show_history

    show_history(run, as_json)


def rollback(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    version: Annotated[
        str | None, typer.Argument(help="Version to use. Default: the current one's parent.")
    ] = None,
) -> None:
    """Make another version of a run the current one."""
    from tsarch.launch.refit import roll_back

    roll_back(run, version)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (refit, watch, history, rollback):
        app.command()(command)
