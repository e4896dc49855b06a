"""`tsarch predict`: a run's answers to files, computed here or on Ray."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from tsarch.clock import now_s
from tsarch.config import Mode
from tsarch.errors import InterruptedRunError, Mistake, UserError

if TYPE_CHECKING:
    from tsarch.inputs.reading import Reading
    from tsarch.prediction.batch import Answered, BatchProgress, BatchResult
    from tsarch.prediction.loading import Backend, Precision
    from tsarch.prediction.unread import OnUnread
    from tsarch.prediction.working import Work, Working

Result = TypeVar("Result")
_ESTIMATE_S = 3600.0
"""How far back a rate looks: a piece of long texts may take minutes."""
_READING = ("data.format", "data.encoding", "data.delimiter", "data.quoting", "data.columns")
_AS_ANY_FILE = (
    *("data.format=auto", "data.encoding=null", "data.delimiter=null", "data.quoting=auto"),
)
"""What held for the training data says nothing of other files."""


@dataclass(frozen=True)
class Computing:
    """How predictions are computed; see `tsarch.load`."""

    device: str
    precision: Precision
    batch_tokens: int
    backend: Backend = "torch"
    store: str | None = None


@dataclass(frozen=True)
class Wanted:
    """Which answers are wanted; see `TrainedPair.predict`."""

    mode: Mode | None
    on_unread: OnUnread = "error"


@dataclass(frozen=True)
class OnRay:
    """Where pairs compute, in place of this process."""

    address: str | None
    """Of a cluster; None: that of RAY_ADDRESS, or a Ray for this call alone."""
    num_workers: int | None
    """Copies of the pair; None: as many as have room."""


def predict_to_file(
    run: str,
    inputs: Sequence[str],
    output: Path,
    wanted: Wanted,
    computing: Computing,
    skip_bad: bool,
    restart: bool,
    overrides: Sequence[str] = (),
    on_ray: OnRay | None = None,
) -> None:
    """Answer all inputs of some files and say how it went.

    Raises:
        UserError: the run, a file or an input can't be read.
        InterruptedRunError: it was told to end.
    """
    from tsarch.launch.training import quieten
    from tsarch.prediction.batch import STDOUT, BatchJob
    from tsarch.prediction.loading import check_options
    from tsarch.prediction.outputs import check_output

    quieten()
    own = computing
    check_options(own.device, own.precision, own.batch_tokens, own.backend)
    files, reading = known_files(run, inputs, overrides, computing.backend, on_ray, skip_bad)
    if str(output) != STDOUT:
        check_output(output, files)
    console = progress_console()
    with _answering(run, wanted, computing, on_ray, console) as (answering, known, identity):
        started = now_s()  # loading the models isn't predicting
        job = BatchJob(files, reading, output, identity, skip_bad, restart)
        kept = "answered"
        if job.is_resumable:
            kept += f" and kept beside {output}; the same command goes on from there"
        result = with_progress(console, known, kept, partial(job.run, answering))
    _tell(console, result, known, output, now_s() - started)


def progress_console() -> Console:
    """Where it is told how far a call is: standard error. Names of files are shown as they are."""
    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def known_files(
    run: str,
    inputs: Sequence[str],
    overrides: Sequence[str],
    backend: Backend,
    on_ray: OnRay | None,
    skip_bad: bool,
    labelled: bool = False,
) -> tuple[list[str], Reading]:
    """The files that are meant, and how they are read; checked before models are loaded.

    Args:
        labelled: whether their rows must have labels.

    Raises:
        UserError: a file, the run or an override can't be read.
    """
    from tsarch.data.sources import STDIN
    from tsarch.inputs.files import check_files, input_files

    reading = replace(_reading(run, overrides, backend), labelled=labelled)
    files = input_files(inputs, "tags" in reading.names)
    if on_ray is not None and STDIN in files:
        raise UserError.single(STDIN, "can't be read on Ray.", "Name a file.")
    check_files(files, reading, skip_bad)
    return files, reading


def _reading(run: str, overrides: Sequence[str], backend: Backend) -> Reading:
    """How files are read for a run: with its columns, unless they are numbers or others are named.

    Raises:
        UserError: the folder is no finished run, or an override is a mistake.
    """
    from tsarch.data.sources import column_names
    from tsarch.inputs.reading import Reading
    from tsarch.prediction.loading import folder_of, opened
    from tsarch.tasks.registry import row_reader

    wrong = [own for own in overrides if not own.strip().startswith(_READING)]
    if wrong:
        hint = f"How files are read: {', '.join(_READING)}."
        what = "doesn't say how files are read."
        raise UserError(Mistake(f"--set {own}", what, hint) for own in wrong)
    folder = folder_of(run, backend)
    blueprint, task_file = opened(folder, backend)
    columns = column_names(row_reader(task_file.task, blueprint.data, labelled=False))
    named = {own: name for own, name in blueprint.data.columns.items() if not name.isdecimal()}
    data = opened(folder, backend, [*_AS_ANY_FILE, *overrides])[0].data
    if not any(own.strip().startswith("data.columns") for own in overrides):
        data = data.model_copy(update={"columns": named})
    return Reading(task_file.task, columns, data)


@contextmanager
def _answering(
    run: str, wanted: Wanted, computing: Computing, on_ray: OnRay | None, console: Console
) -> Iterator[tuple[Working[Answered], Mode, str]]:
    """Who answers, in which mode, and what tells them from others."""
    from tsarch.prediction.batch import answered, told_way
    from tsarch.prediction.loading import load, without_models
    from tsarch.prediction.working import working_here

    given = asdict(computing)
    pair = load(run, **given) if on_ray is None else without_models(run, given)
    known = pair.known_mode(wanted.mode)
    pair.check_unread(wanted.on_unread)
    identity = f"{told_way(known, wanted.on_unread)} {pair.revision} {computing.precision}"
    if computing.store is not None:
        identity += f" {Path(computing.store).absolute()}"
    work = partial(answered, mode=known, on_unread=wanted.on_unread)
    if on_ray is None:
        yield working_here(pair, work), known, identity
        if pair.stored is not None:
            own = pair.stored
            console.print(
                f"{own.hits:,} contexts from the store, {own.misses:,} read by the teacher"
            )
        return
    with working_by(run, work, given, on_ray, console) as answering:
        yield answering, known, identity


@contextmanager
def working_by(
    run: str, work: Work[Result], options: Mapping[str, Any], on_ray: OnRay, console: Console
) -> Iterator[Working[Result]]:
    """Within, copies of a run's pair on Ray work; `options`: of `tsarch.load`."""
    from tsarch.cluster.prediction import working_on_ray
    from tsarch.launch.training import cluster_address

    address = cluster_address(on_ray.address)
    arguments = options, address, on_ray.num_workers, console.print
    with working_on_ray(run, work, *arguments) as own:
        yield own


def with_progress(
    console: Console,
    title: str,
    kept: str,
    run: Callable[[Callable[[BatchProgress], None]], Result],
) -> Result:
    """Run a job and show how far it is.

    Args:
        kept: what became of its inputs if it is told to end, behind their number.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[inputs]:,} inputs"),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    done = 0
    with (
        Progress(
            *columns, console=console, transient=True, speed_estimate_period=_ESTIMATE_S
        ) as bar,
        _told_to_end(kept, lambda: done),
    ):
        shown = bar.add_task(title, total=None, inputs=0)

        def progress(own: BatchProgress) -> None:
            nonlocal done
            if done == 0:  # what an earlier call has answered is no measure of speed
                total = own.num_bytes or None
                bar.reset(shown, total=total, completed=own.begun_bytes, inputs=own.inputs)
            done = own.inputs
            bar.update(shown, completed=own.bytes_read, inputs=done)

        return run(progress)


@contextmanager
def _told_to_end(kept: str, done: Callable[[], int]) -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM end the call, which says how it can go on."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        what = f"interrupted: {done():,} inputs are {kept}."
        raise InterruptedRunError(int(number), what) from None
    except BrokenPipeError:  # whoever read the answers has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing is left to be flushed into it
        raise InterruptedRunError(int(signal.SIGPIPE), "") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


def _tell(console: Console, result: BatchResult, mode: Mode, output: Path, seconds: float) -> None:
    speed = (result.inputs - result.skipped) / max(seconds, 1e-9)
    for note in result.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"{result.inputs:,} inputs answered by {mode}: {output} ({speed:,.0f} inputs/s)")
    if result.skipped:
        console.print(f"{result.skipped:,} of them by an earlier call that was interrupted")
    if result.partly_read:
        told = "were read in part: `unread` of their predictions says what wasn't"
        console.print(f"{result.partly_read:,} of them {told}", markup=False)
    if result.bad:
        console.print(f"{result.bad:,} of them can't be read: their rows say so in `problem`")
