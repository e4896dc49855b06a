"""The command line: `tsarch train`, `evaluate`, `predict`, `serve`, `export`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tsarch.config import Config, Mode
from tsarch.config_loading import load_config
from tsarch.errors import InterruptedRunError, ReplicaDriftError, RunFailedError, UserError
from tsarch.host_memory import collect_seldom, keep_freed_memory
from tsarch.launch import file_commands, job_commands, prediction_commands, version_commands
from tsarch.launch.doctor import doctor
from tsarch.launch.options import (
    Backend,
    BackendOption,
    Device,
    ModeName,
    Precision,
    PrecisionOption,
)
from tsarch.launch.plan import plan
from tsarch.launchers import describe, forget_launchers
from tsarch.redaction import redact

app = typer.Typer(
    name="tsarch",
    help="Train a teacher and a student that share one embedding table, as two pipeline stages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Split(StrEnum):
    """Splits of a data set."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


_Timings = Annotated[bool, typer.Option("--timings", help="Say what the seconds went into.")]


@app.command()
def train(
    config: Annotated[
        Path,
        typer.Argument(
            help="YAML file of the run, such as configs/quickstart.yaml; with --resume also its "
            "folder."
        ),
    ],
    overrides: Annotated[
        list[str], typer.Option("--set", help="Change a key: --set schedule.epochs=3.")
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster to join (`auto` or HOST:PORT). Default: that of RAY_ADDRESS, else "
            "`local`: a Ray for this run alone."
        ),
    ] = None,
    trace: Annotated[
        bool,
        typer.Option("--trace", help="Write trace.json: every instruction of every rank."),
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Record some steps; say where their time goes.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
    timings: _Timings = False,
) -> None:
    """Train, and evaluate the test split before and after."""
    from tsarch.launch.training import run_training

    if profile:
        overrides = ["run.profile_steps=5", *overrides]
    run_training(load_run(config, overrides, trace, resume), address, resume, timings=timings)


def load_run(config: Path, overrides: list[str], trace: bool, resume: bool) -> Config:
    """The config that `train` means; on `resume` it may be a run's folder."""
    if trace:
        overrides = [*overrides, "run.trace=true"]
    if resume and config.is_dir():
        overrides = [*overrides, f"run.folder={config}"]
        if not (config / "config.yaml").is_file():
            what = "nothing to resume: there is no config.yaml, which a run writes as it starts."
            raise UserError.single(f"--resume: {config}", what, "Start without --resume.")
        config = config / "config.yaml"
    return load_config(config, overrides)


Depth = Annotated[
    int | None,
    typer.Option(min=1, help="Layers of the student: one of student.depths. Default: all."),
]


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    split: Annotated[Split, typer.Option(help="Split to measure.")] = Split.TEST,
    mode: Annotated[ModeName | None, typer.Option(help="One mode only. Default: all.")] = None,
    data: Annotated[
        str | None, typer.Option(help="File to measure on, in place of the run's own.")
    ] = None,
    overrides: Annotated[
        list[str],
        typer.Option("--set", help="Change a key: --set data.columns.tokens=words."),
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    output: Annotated[
        Path | None, typer.Option(help="JSON file to write the metrics to, and of which data.")
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option(help="JSON Lines file to write the mistakes to, surest first."),
    ] = None,
    depth: Depth = None,
    timings: _Timings = False,
) -> None:
    """Measure a run's best weights again, from its folder and the data alone."""
    from tsarch.launch.evaluation import show_evaluation

    chosen: Mode | None = None if mode is None else mode.value
    show_evaluation(run, split.value, chosen, overrides, data, output, errors, timings, depth)


app.command()(prediction_commands.predict)
app.command()(prediction_commands.read)
app.command()(prediction_commands.augment)


OnRay = Annotated[
    bool,
    typer.Option("--ray", help="Teachers and students as replicas on Ray Serve."),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="With --ray: cluster to join (`auto` or HOST:PORT). Default: that of RAY_ADDRESS, "
        "else `local`: a Ray of its own."
    ),
]
Stores = Annotated[
    list[str],
    typer.Option(help="Store of `tsarch read`, for the run that it is of. May be given again."),
]
NumReplicas = Annotated[int, typer.Option(min=1, help="With --ray: of each run.")]


@app.command()
def serve(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Finished runs or exports: folders, URLs or names on the hub, each with a name "
            "to be asked by, if you like: NAME=FOLDER."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File of tokens, one a line: who asks must send one. Or one in the environment: "
            "TSARCH_SERVE_TOKEN."
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    precision: PrecisionOption = Precision.FP32,
    backend: BackendOption = Backend.TORCH,
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of requests that are read together.")
    ] = 4096,
    limit: Annotated[
        list[str], typer.Option("--limit", help="Change a limit: --limit inputs=64. See Serving.")
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    follow_s: Annotated[
        float,
        typer.Option("--follow-s", min=0, help="Look so often for a run's new current version."),
    ] = 0.0,
    store: Stores = [],  # noqa: B006
    once: Annotated[
        bool, typer.Option("--once", help="Answer an example of each run over HTTP, and end.")
    ] = False,
    ray: OnRay = False,
    address: Address = None,
    teacher_replicas: NumReplicas = 1,
    student_replicas: NumReplicas = 1,
) -> None:
    """Serve runs over HTTP, with a page to try them."""
    from tsarch.launch.prediction import Computing
    from tsarch.launch.serving import OnRay, ServeOptions, serve_runs

    computing = Computing(device.value, precision.value, batch_tokens, backend.value)
    fleet = OnRay(ray, address, teacher_replicas, student_replicas)
    options = ServeOptions(
        host, port, token_file, computing, limit, follow_s, once, fleet, tuple(store)
    )
    serve_runs(runs, options)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    onnx: Annotated[
        bool, typer.Option(help="Write ONNX models too, for load(…, backend='onnx').")
    ] = True,
    int8: Annotated[
        bool, typer.Option("--int8", help="Write ONNX models with weights of 8 bits beside them.")
    ] = False,
    check_rows: Annotated[
        int, typer.Option(min=1, help="Rows on which what is written is compared with the run.")
    ] = 300,
    name: Annotated[str, typer.Option(help="Name on the model card. Default: the run's.")] = "",
    licence: Annotated[
        str, typer.Option(help="Licence of the model, as the hub calls it: apache-2.0.")
    ] = "",
    language: Annotated[
        list[str], typer.Option(help="Language of the texts: en. May be given again.")
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    depth: Depth = None,
) -> None:
    """Write a run for others: models of transformers, the pair with a model card, ONNX."""
    from tsarch.launch.export import export_to
    from tsarch.run.depths import at_depth

    export_to(at_depth(run, depth), folder, onnx, int8, check_rows, name, licence, language)


version_commands.register(app)
job_commands.register(app)
file_commands.register(app)
app.command()(plan)
app.command()(doctor)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, in an environment without launchers' variables."""
    keep_freed_memory()
    collect_seldom()
    note = describe(forget_launchers())
    if note is not None:
        typer.echo(f"note: {note}", err=True)
    run_command(app, arguments)


def run_command(app: typer.Typer, arguments: Sequence[str] | None = None) -> None:
    """Run commands; mistakes of the user end with a message and exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if isinstance(sys.stdout, TextIOWrapper):  # texts may hold what a terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(args=None if arguments is None else list(arguments))
    except UserError as error:
        _complain([str(mistake) for mistake in error.mistakes])
        sys.exit(2)
    except InterruptedRunError as error:
        _complain([str(error)] if str(error) else [])
        sys.exit(128 + error.signal_number)
    except (RunFailedError, ReplicaDriftError) as error:
        _complain([str(error)])
        sys.exit(1)


def _complain(messages: Sequence[str]) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    for message in messages:
        console.print("[bold red]error[/bold red] ", end="")
        console.print(redact(message), markup=False)
