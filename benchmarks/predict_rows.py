"""Many short rows through `tsarch predict`: memory, and speed beside that of the Python API.

A process answers made-up rows from a file, and the first of them by `pair.predict` in lists as
long as the file's pieces. Seconds are the process's own on CPUs (one thread), so that others on the
machine don't count; memory is the process's resident set, after each piece.

    python -m benchmarks.predict_rows RUN --rows 1000000 --mode student_alone
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer

import tsarch
from tsarch.config import Mode
from tsarch.prediction import pieces
from tsarch.prediction.batch import BatchProgress, predict_files
from tsarch.prediction.trained_pair import TrainedPair

TEXT = (
    "Maria Rossi saw ships in Rome near the old harbour of Genoa while Tom Berg wrote letters home"
)
WORDS = TEXT.split()
SETTLED = 50_000
"""Rows after which memory should be flat."""
SEED = 1


@dataclass(frozen=True)
class Measured:
    """What was measured."""

    run: str
    mode: str
    rows: int
    files_rows_per_s: float
    """By seconds of the process on CPUs."""
    api_rows_per_s: float
    api_rows: int
    settled_bytes: int
    """Resident after 50,000 rows, or half of them."""
    least_bytes: int
    """From then on."""
    most_bytes: int

    @property
    def speed_share(self) -> float:
        """Of the API's."""
        return self.files_rows_per_s / self.api_rows_per_s

    @property
    def largest_change(self) -> float:
        """Of memory, from the settled one, as a share of it."""
        own = (self.least_bytes, self.most_bytes)
        return max(abs(size - self.settled_bytes) for size in own) / self.settled_bytes


class _TimeIsUpError(Exception):
    """Ends the measurement."""


def rows_of(task: str, number: int) -> Iterator[dict[str, Any]]:
    """Short rows (4 to 14 words), the same at every call."""
    draw = random.Random(SEED)
    for place in range(number):
        words = [draw.choice(WORDS) for _ in range(draw.randint(4, 14))]
        row: dict[str, Any] = {"tokens": words} if task == "ner" else {"text": " ".join(words)}
        yield {"id": place, **row}


def measure(
    pair: TrainedPair, run: Path, mode: Mode, number: int, api_rows: int, seconds: float
) -> Measured:
    """Answer `number` rows, or as many as there is time for."""
    pair.predict(list(rows_of(pair.task, pieces.INPUTS)), mode)  # what is made at the first call
    process = psutil.Process()
    sizes: list[tuple[int, int]] = []
    started, until = time.process_time(), time.monotonic() + seconds

    def progress(done: BatchProgress) -> None:
        sizes.append((done.inputs, process.memory_info().rss))
        if time.monotonic() > until:
            raise _TimeIsUpError

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        with source.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows_of(pair.task, number))
        started = time.process_time()
        output = Path(folder) / "out.jsonl"
        with suppress(_TimeIsUpError):
            predict_files(pair, [str(source)], output, mode, on_progress=progress)
        files_s = time.process_time() - started
    done = sizes[-1][0]
    settled = [size for rows, size in sizes if rows >= min(SETTLED, done / 2)]
    api_rows = min(api_rows, done)
    api_s = _api_s(pair, mode, api_rows)
    return Measured(
        str(run), mode, done, done / files_s, api_rows / api_s, api_rows,
        settled[0], min(settled), max(settled),
    )  # fmt: skip


def _api_s(pair: TrainedPair, mode: Mode, number: int) -> float:
    """Seconds on CPUs that the API takes."""
    rows = rows_of(pair.task, number)
    spent = 0.0
    while own := list(itertools.islice(rows, pieces.INPUTS)):
        started = time.process_time()
        pair.predict(own, mode)
        spent += time.process_time() - started
    return spent


def main(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run (ner, classification).")],
    rows: Annotated[int, typer.Option(min=1000, help="Rows at most.")] = 1_000_000,
    api_rows: Annotated[int, typer.Option(help="Of them, answered by the API too.")] = 50_000,
    mode: Annotated[str | None, typer.Option(help="Who predicts.")] = None,
    seconds: Annotated[float, typer.Option(help="For the file's rows at most.")] = 3600.0,
) -> None:
    """Measure, and print a row of the table of docs/predicting-files.md."""
    torch.set_num_threads(1)
    pair = tsarch.load(run, device="cpu")
    own = measure(pair, run, pair.known_mode(mode), rows, api_rows, seconds)  # type: ignore[arg-type]
    print(json.dumps(asdict(own), indent=2))
    print(
        f"| {own.mode} | {own.rows:,} | {own.files_rows_per_s:,.0f} | {own.api_rows_per_s:,.0f} | "
        f"{own.speed_share:.0%} | {own.settled_bytes / 1e6:,.0f} MB | {own.largest_change:.1%} |"
    )


if __name__ == "__main__":
    typer.run(main)
