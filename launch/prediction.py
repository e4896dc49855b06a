"""`tsarch predict`: a run's answers to files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from tsarch.clock import now_s
from tsarch.config import Mode

if TYPE_CHECKING:
    from tsarch.prediction.batch import BatchProgress, BatchResult
    from tsarch.prediction.trained_pair import TrainedPair


@dataclass(frozen=True)
class Computing:
    """How predictions are computed; see `tsarch.load`."""

    device: str
    precision: Literal["fp32", "bf16"]
    batch_tokens: int


def predict_to_file(
    run: Path,
    inputs: Sequence[str],
    output: Path,
    mode: Mode | None,
    computing: Computing,
    skip_bad: bool,
    restart: bool,
) -> None:
    """Answer all inputs of some files and say how it went.

    Raises:
        UserError: the run, a file or an input can't be read.
    """
    from tsarch.launch.training import quieten
    from tsarch.prediction.loading import load
    from tsarch.prediction.outputs import check_output
    from tsarch.prediction.streams import input_files

    quieten()
    check_output(output)
    input_files(inputs)  # before the models are loaded
    pair = load(run, computing.device, computing.precision, computing.batch_tokens)
    mode = mode or pair.default_mode
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    started = now_s()
    identity = f"{pair.revision} {computing.precision}"
    result = _with_progress(console, pair, inputs, output, mode, skip_bad, restart, identity)
    _tell(console, result, mode, output, now_s() - started)


def _with_progress(
    console: Console,
    pair: TrainedPair,
    inputs: Sequence[str],
    output: Path,
    mode: Mode,
    skip_bad: bool,
    restart: bool,
    identity: str,
) -> BatchResult:
    from tsarch.prediction.batch import predict_files

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[inputs]:,} inputs"),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        shown = bar.add_task(mode, total=None, inputs=0)

        def progress(done: BatchProgress) -> None:
            bar.update(shown, completed=done.bytes_read, total=done.num_bytes, inputs=done.inputs)

        return predict_files(pair, inputs, output, mode, skip_bad, restart, identity, progress)


def _tell(console: Console, result: BatchResult, mode: Mode, output: Path, seconds: float) -> None:
    speed = (result.inputs - result.skipped) / max(seconds, 1e-9)
    console.print(f"{result.inputs:,} inputs answered by {mode}: {output} ({speed:,.0f} inputs/s)")
    if result.skipped:
        console.print(f"{result.skipped:,} of them by an earlier call that was interrupted")
    if result.bad:
        console.print(f"{result.bad:,} of them can't be read: their rows say so in `problem`")
