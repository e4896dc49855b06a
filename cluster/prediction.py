"""`tsarch predict` and `tsarch read` on Ray Data: one task reads, where the files are; actors that
each load the pair once work on pieces, and the driver writes what they make of them in order.

The pieces are those of one process, and so is the output.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import RayError

from tsarch.cluster.joining import join_ray
from tsarch.errors import RunFailedError, UserError, one_line
from tsarch.host_memory import keep_freed_memory
from tsarch.inputs.files import InputFile
from tsarch.inputs.reading import Reading
from tsarch.prediction.loading import load
from tsarch.prediction.pieces import Limits, pieces
from tsarch.prediction.working import Result, Work, Working

_PIECE, _RESULT = "piece", "result"


@contextmanager
def working_on_ray(
    run: str,
    work: Work[Result],
    computing: Mapping[str, Any],
    address: str | None,
    num_workers: int | None,
    say: Callable[[str], None],
) -> Iterator[Working[Result]]:
    """Within, copies of a run's pair on Ray work.

    Args:
        work: can be sent to other processes, as its results can.
        computing: of `tsarch.load`.
        address: of a cluster; None: a Ray for this call alone.
        num_workers: copies; None: one for each GPU, or for each CPU where there is none.

    Raises:
        UserError: no such cluster or run, or the cluster can't hold a copy.
    """
    join_ray(num_workers or 1, address, say)
    try:
        each, most = _share(str(computing["device"]))
        copies = min(num_workers or most, most)
        if num_workers is not None and num_workers > most:
            what = f"are more than the {most} that have room on this Ray."
            raise UserError.single(f"--workers {num_workers}", what, "Each takes a GPU or a CPU.")
        say(f"{copies} workers on Ray load the models")
        place = str(Path(run).absolute()) if Path(run).exists() else run
        yield partial(_results, each, copies, (place, work, dict(computing)))
    finally:
        ray.shutdown()


def _share(device: str) -> tuple[dict[str, float], int]:
    """What a worker takes of the cluster, and how many have room."""
    total = ray.cluster_resources()
    gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 0))
    if device == "cuda" and not gpus:
        raise UserError.single("--device cuda", "no node of this Ray has a GPU.")
    if gpus and device != "cpu":
        return {"num_cpus": 1, "num_gpus": 1}, gpus
    return {"num_cpus": 1}, cpus


def _results(
    each: Mapping[str, float],
    copies: int,
    arguments: tuple[str, Work[Result], dict[str, Any]],
    files: Sequence[str],
    reading: Reading,
    skipped: int,
) -> Iterator[Result]:
    """What is made of all pieces of files, in order; see `Working`.

    Raises:
        UserError: a worker can't load the pair, or reads what this process doesn't know.
        RunFailedError: Ray lost its workers.
    """
    _configure()
    source = _Files(files, reading, skipped)
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    read = ray.data.read_datasource(source, override_num_blocks=1, num_cpus=0, label_selector=here)
    written = read.map_batches(
        _Worker,
        fn_constructor_args=arguments,
        batch_size=1,
        batch_format="pandas",
        concurrency=(1, copies, copies),
        **each,
    )
    try:
        for batch in written.iter_batches(batch_size=1, batch_format="pandas"):
            own = batch[_RESULT][0]
            if isinstance(own, UserError):
                raise own
            yield own
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        raise RunFailedError(f"predicting on Ray failed: {one_line(cause)}") from None


def _configure() -> None:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a piece is a block: else Ray puts many into one
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


class _Files(Datasource):  # type: ignore[misc]
    """Pieces of files, in order."""

    def __init__(self, files: Sequence[str], reading: Reading, skipped: int) -> None:
        limits = Limits.of(reading.task)
        self._read = partial(_pieces, os.getcwd(), tuple(files), reading, limits, skipped)

    def estimate_inmemory_data_size(self) -> int | None:
        """Nobody knows."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One, which keeps the order."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None)
        return [ReadTask(self._read, unknown)]


def _pieces(
    folder: str, files: Sequence[str], reading: Reading, limits: Limits, skipped: int
) -> Iterator[Any]:
    """Blocks of one piece each, read from `folder`, as the names of files may be relative."""
    os.chdir(folder)
    opened = [InputFile(path, reading) for path in files]
    for piece in pieces(opened, limits, skipped):
        yield pd.DataFrame({_PIECE: [piece]})


class _Worker:
    """Loads the pair once and works on pieces."""

    def __init__(self, run: str, work: Work[Any], computing: dict[str, Any]) -> None:
        keep_freed_memory()
        self._work = work
        try:
            self._pair = load(run, **computing)
        except UserError as error:  # told by the driver: Ray would try again and again
            self._error: UserError | None = error
        else:
            self._error = None

    def __call__(self, batch: Any) -> Any:
        """What is made of a piece, or why nothing is."""
        own: Any
        try:
            own = self._error or self._work(self._pair, batch[_PIECE][0])
        except UserError as error:
            own = error
        return pd.DataFrame({_RESULT: [own]})
