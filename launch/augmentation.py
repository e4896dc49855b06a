"""`tsarch augment`: training rows that a trained pair has labelled, or that were altered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tsarch.clock import now_s
from tsarch.config import Mode
from tsarch.errors import UserError
from tsarch.launch.prediction import Computing, known_files, progress_console, with_progress

if TYPE_CHECKING:
    from rich.console import Console

    from tsarch.augmentation.methods import Settings
    from tsarch.prediction.batch import BatchResult


def augment_to_file(
    run: str,
    inputs: Sequence[str],
    output: Path,
    settings: Settings,
    mode: Mode | None,
    computing: Computing,
    skip_bad: bool,
    restart: bool,
    overrides: Sequence[str] = (),
) -> None:
    """Make rows of all inputs of some files and say how it went.

    Raises:
        UserError: the run, a file or an input can't be read, or what is asked makes no sense.
        InterruptedRunError: it was told to end.
    """
    from tsarch.augmentation.making import made_of
    from tsarch.augmentation.methods import alteration, check_settings
    from tsarch.data.sources import STDIN
    from tsarch.launch.training import quieten
    from tsarch.prediction.batch import STDOUT, BatchJob
    from tsarch.prediction.loading import load
    from tsarch.prediction.outputs import check_output
    from tsarch.prediction.working import working_here

    quieten()
    labelled = settings.method != "label"
    files, reading = known_files(run, inputs, overrides, "torch", None, skip_bad, labelled)
    check_settings(settings, reading.task)
    if str(output) != STDOUT:
        check_output(output, files)
    if settings.method == "swap" and STDIN in files:
        what = "is read once, and swap looks for all entities first."
        raise UserError.single(STDIN, what, "Name a file.")
    console = progress_console()
    pair = load(run, computing.device, computing.precision, computing.batch_tokens)
    known = pair.known_mode(mode or ("teacher" if "teacher" in pair.modes else None))
    altering = alteration(settings, run, pair, files, reading)
    work = partial(made_of, mode=known, settings=settings, alter=altering.alter)
    method, started = settings.method, now_s()
    by = f"{pair.revision} {altering.revision} {computing.precision}"
    identity = f"augment {known} {by} {settings.identity}"
    job = BatchJob(files, reading, output, identity, skip_bad, restart)
    kept = "done"
    if job.is_resumable:
        kept += f" and their rows kept beside {output}; the same command goes on from there"
    result = with_progress(console, method, kept, partial(job.run, working_here(pair, work)))
    _tell(console, result, f"{method}, judged by {known}", output, now_s() - started)


def _tell(console: Console, result: BatchResult, how: str, output: Path, seconds: float) -> None:
    for note in result.notes:
        console.print(f"note: {note}", markup=False)
    speed = (result.inputs - result.skipped) / max(seconds, 1e-9)
    rows = f"{result.rows:,} rows of {result.inputs:,} inputs"
    console.print(f"{rows} ({how}): {output} ({speed:,.0f} inputs/s)")
    if result.skipped:
        console.print(f"{result.skipped:,} of the inputs by an earlier call that was interrupted")
    if result.bad:
        console.print(f"{result.bad:,} of the inputs can't be read: there are no rows of them")
