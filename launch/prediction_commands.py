"""The commands that go through files with a trained pair: `tsarch predict`, `tsarch read`,
`tsarch augment`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tsarch.launch.options import (
    Backend,
    BackendOption,
    Device,
    ModeName,
    Precision,
    PrecisionOption,
)


class Unread(StrEnum):
    """What is done about inputs that can't be read whole."""

    ERROR = "error"
    MARK = "mark"
    PARTS = "parts"


class Method(StrEnum):
    """How rows are made."""

    LABEL = "label"
    SWAP = "swap"
    MASK = "mask"
    TRANSLATE = "translate"


class States(StrEnum):
    """How the teacher's states are stored."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"


_Inputs = Annotated[
    list[str],
    typer.Option(
        "--input",
        help="File, glob or URL, in a format that data may have or of plain texts (a line is "
        "an input); `-`: standard input. May be given again.",
    ),
]
_More = Annotated[
    list[str],
    typer.Argument(help="More files, as a shell makes of a pattern behind --input."),
]
_Output = Annotated[
    Path,
    typer.Option(
        help="File to write: .jsonl, .csv, .tsv or .parquet; `-`: JSON Lines to standard output."
    ),
]
_Unread = Annotated[
    Unread,
    typer.Option(
        help="Of an input that can't be read whole: `error`; `mark`: its answer says what wasn't "
        "read; `parts`: a source of texts is read in parts."
    ),
]
_Run = Annotated[
    str, typer.Argument(help="Folder, URL or name on the hub of a finished run or an export.")
]
_Device = Annotated[Device, typer.Option(help="Where to compute.")]
_BatchTokens = Annotated[int, typer.Option(min=1, help="Padded tokens that are read at a time.")]
_SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Go on where an input can't be read; say so there.")
]
_Reading = Annotated[
    list[str],
    typer.Option("--set", help="How files are read: --set data.columns.text=body."),
]
_OnRay = Annotated[
    bool,
    typer.Option(
        "--ray", help="Compute on Ray: the cluster of --address or RAY_ADDRESS, or one's own."
    ),
]
_RayAddress = Annotated[
    str | None,
    typer.Option(help="Ray cluster to compute on (`auto`, HOST:PORT or `local`); means --ray."),
]
_Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Copies of the models on Ray; means --ray. Default: one a GPU, or a CPU if there is "
        "none.",
    ),
]


_Restart = Annotated[
    bool, typer.Option("--restart", help="Begin anew, though an earlier call was interrupted.")
]
_Method = Annotated[
    Method,
    typer.Option(
        help="`label`: inputs get the run's labels, or texts; of labelled rows copies with "
        "`swap`: other entities of the same types; `mask`: other words outside what labels are "
        "about; `translate`: texts that came back from another language."
    ),
]
_KeepAbove = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="Least probability that the run gives a row's labels."),
]
_Copies = Annotated[int, typer.Option(min=1, help="Altered copies of each row.")]
_Share = Annotated[float, typer.Option(min=0.0, max=1.0, help="mask: share of a row's words.")]
_Masked = Annotated[
    str | None,
    typer.Option(
        help="mask: masked language model that chooses words. Default: words that the run's "
        "table has near."
    ),
]
_There = Annotated[str | None, typer.Option(help="translate: run to another language.")]
_Back = Annotated[str | None, typer.Option(help="translate: run back from it.")]
_Seed = Annotated[int, typer.Option(min=0, help="Of all that is chosen at random.")]
_Judge = Annotated[ModeName | None, typer.Option(help="Who labels and judges. Default: teacher.")]


def predict(
    run: _Run,
    input: _Inputs,
    output: _Output,
    more: _More = [],  # noqa: B006 - typer reads defaults, nobody changes them
    mode: Annotated[
        ModeName | None, typer.Option(help="Who predicts. Default: joint, if there are both.")
    ] = None,
    device: _Device = Device.AUTO,
    precision: PrecisionOption = Precision.FP32,
    backend: BackendOption = Backend.TORCH,
    batch_tokens: _BatchTokens = 4096,
    skip_bad: _SkipBad = False,
    on_unread: _Unread = Unread.ERROR,
    restart: _Restart = False,
    store: Annotated[
        str | None,
        typer.Option(help="Store of `tsarch read`: the teacher doesn't read what is there again."),
    ] = None,
    overrides: _Reading = [],  # noqa: B006
    ray: _OnRay = False,
    address: _RayAddress = None,
    workers: _Workers = None,
) -> None:
    """Answer the inputs of files, in order; an interrupted call goes on where it was."""
    from tsarch.launch.prediction import Computing, OnRay, Wanted, predict_to_file

    on_ray = OnRay(address, workers) if ray or address or workers else None
    predict_to_file(
        run,
        [*input, *more],
        output,
        Wanted(None if mode is None else mode.value, on_unread.value),
        Computing(device.value, precision.value, batch_tokens, backend.value, store),
        skip_bad,
        restart,
        overrides,
        on_ray,
    )


def read(
    run: _Run,
    input: _Inputs,
    output: Annotated[
        Path, typer.Option(help="Folder of the store; what it has already isn't read again.")
    ],
    more: _More = [],  # noqa: B006
    states: Annotated[
        States,
        typer.Option(help="How states are stored: fp32, bf16, or int8 with a scale a row."),
    ] = States.BF16,
    dimensions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Store the states' first so many principal components, found in the run's "
            "training texts. Default: all numbers.",
        ),
    ] = None,
    device: _Device = Device.AUTO,
    precision: PrecisionOption = Precision.FP32,
    backend: BackendOption = Backend.TORCH,
    batch_tokens: _BatchTokens = 4096,
    skip_bad: _SkipBad = False,
    overrides: _Reading = [],  # noqa: B006
    ray: _OnRay = False,
    address: _RayAddress = None,
    workers: _Workers = None,
) -> None:
    """Let the teacher read documents once, into a store for `predict` and `serve`."""
    from tsarch.launch.prediction import Computing, OnRay
    from tsarch.launch.reading import read_to_store

    read_to_store(
        run,
        [*input, *more],
        output,
        states.value,
        Computing(device.value, precision.value, batch_tokens, backend.value),
        skip_bad,
        overrides,
        OnRay(address, workers) if ray or address or workers else None,
        dimensions,
    )


def augment(
    run: _Run,
    input: _Inputs,
    output: _Output,
    more: _More = [],  # noqa: B006
    method: _Method = Method.LABEL,
    keep_above: _KeepAbove = 0.0,
    copies: _Copies = 1,
    share: _Share = 0.15,
    model: _Masked = None,
    there: _There = None,
    back: _Back = None,
    seed: _Seed = 0,
    mode: _Judge = None,
    device: _Device = Device.AUTO,
    precision: PrecisionOption = Precision.FP32,
    batch_tokens: _BatchTokens = 4096,
    skip_bad: _SkipBad = False,
    restart: _Restart = False,
    overrides: _Reading = [],  # noqa: B006
) -> None:
    """Write training rows: a run's labels of other text, or altered copies of labelled rows."""
    from tsarch.augmentation.methods import Settings
    from tsarch.launch.augmentation import augment_to_file
    from tsarch.launch.prediction import Computing

    augment_to_file(
        run,
        [*input, *more],
        output,
        Settings(method.value, keep_above, copies, share, seed, model, there, back),
        None if mode is None else mode.value,
        Computing(device.value, precision.value, batch_tokens),
        skip_bad,
        restart,
        overrides,
    )
