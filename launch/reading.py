"""`tsarch read`: the teacher's states of documents, into a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tsarch.launch.prediction import (
    Computing,
    OnRay,
    known_files,
    progress_console,
    with_progress,
    working_by,
)

if TYPE_CHECKING:
    from tsarch.config import Mode
    from tsarch.pair.projection import Projection
    from tsarch.pair.state_files import StoredAs
    from tsarch.pair.state_folder import StateWriter, StoreSize
    from tsarch.prediction.loading import Backend
    from tsarch.prediction.reading import ReadPiece, ReadResult
    from tsarch.prediction.working import Working


def read_to_store(
    run: str,
    inputs: Sequence[str],
    store: Path,
    stored_as: StoredAs,
    computing: Computing,
    skip_bad: bool,
    overrides: Sequence[str],
    on_ray: OnRay | None,
    dimensions: int | None = None,
) -> None:
    """Have the states of all documents of some files in a store, and say what it takes.

    Raises:
        UserError: the run, a file, an input or the store can't be read or written.
        InterruptedRunError: it was told to end.
    """
    from tsarch.launch.training import quieten
    from tsarch.pair.state_folder import StateWriter
    from tsarch.prediction.loading import check_options, without_models
    from tsarch.prediction.reading import ReadingJob

    quieten()
    own = computing
    check_options(own.device, own.precision, own.batch_tokens, own.backend)
    files, reading = known_files(run, inputs, overrides, computing.backend, on_ray, skip_bad)
    pair = without_models(run, asdict(computing))
    pair.check_reads_documents("read")
    fit = None if dimensions is None else _fit(run, own.backend, dimensions)
    writer = StateWriter(store, stored_as, pair.revision, dimensions)
    console = progress_console()
    teacher: Mode = "teacher" if "teacher" in pair.modes else "student"
    options = {**asdict(computing), "modes": [teacher]}
    if fit is not None and writer.projection is None:
        console.print(f"the teacher reads training texts, to find {dimensions} dimensions")
        writer.projection = fit(options)
    with _working(run, options, writer, stored_as, on_ray, console) as working:
        job = ReadingJob(files, reading, writer, skip_bad)
        kept = f"read and kept in {store}; the same command goes on from there"
        result = with_progress(console, "teacher", kept, partial(job.run, working))
    _tell(console, result, writer.size(), store)


def _fit(run: str, backend: Backend, dimensions: int) -> Callable[[Mapping[str, Any]], Projection]:
    """What finds the projection to so many dimensions, here; it is given options of `load`.

    Raises:
        UserError: see `check_dimensions`.
    """
    from tsarch.prediction.components import check_dimensions, check_texts, fitted_projection
    from tsarch.prediction.loading import folder_of, load, opened

    blueprint, task_file = opened(folder_of(run, backend), backend)
    check_dimensions(dimensions, blueprint.teacher_width)

    def fit(options: Mapping[str, Any]) -> Projection:
        check_texts(blueprint)  # before the teacher is loaded
        return fitted_projection(load(run, **options), blueprint, task_file.labels, dimensions)

    return fit


@contextmanager
def _working(
    run: str,
    options: Mapping[str, Any],
    writer: StateWriter,
    stored_as: StoredAs,
    on_ray: OnRay | None,
    console: Console,
) -> Iterator[Working[ReadPiece]]:
    """The teacher, here or on Ray; `options`: of `load`."""
    from tsarch.prediction.loading import load
    from tsarch.prediction.reading import read_piece, read_whole_piece
    from tsarch.prediction.working import working_here

    if on_ray is None:
        work = partial(
            read_piece, known=writer.known, stored_as=stored_as, projection=writer.projection
        )
        yield working_here(load(run, **options), work)
        return
    known = frozenset(writer.known)
    whole = partial(
        read_whole_piece, known=known, stored_as=stored_as, projection=writer.projection
    )
    with working_by(run, whole, options, on_ray, console) as working:
        yield working


def _tell(console: Console, result: ReadResult, size: StoreSize, store: Path) -> None:
    for note in result.notes:
        console.print(f"note: {note}", markup=False)
    if result.bad:
        console.print(f"{result.bad:,} of {result.inputs:,} inputs can't be read")
    console.print(f"{result.inputs:,} inputs: the teacher read {result.contexts:,} contexts")
    has = f"{size.contexts:,} contexts, {size.tokens:,} tokens, {size.num_bytes / 1e6:,.1f} MB"
    console.print(f"{store}: {has}, {size.bytes_a_token:,.0f} bytes a token", markup=False)
