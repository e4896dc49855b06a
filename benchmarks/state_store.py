"""What stored states of the teacher take, and how good the answers from them are.

The documents of a run's test split are read into a store of each kind (`tsarch read`), and answered
from it: strict entity F1, by the words of the rows. CPU seconds are the process's own.

    python -m benchmarks.state_store runs/quickstart
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer

import tsarch
from benchmarks.inference_table import entity_f1
from tsarch.pair.state_files import EncodedStates, StoredAs
from tsarch.pair.state_folder import StateWriter
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.prepare import prepare_split
from tsarch.run.saved_run import open_run
from tsarch.run.versions import current_folder
from tsarch.tasks.ner import entities

Spans = list[tuple[str, int, int]]


@dataclass(frozen=True)
class Measured:
    """Answers from states that are stored in a way."""

    stored_as: str
    bytes_a_token: float
    """On the disk; 0: nothing is stored."""
    student_f1: float
    joint_f1: float
    student_s: float
    """CPU seconds of all answers of `student`."""


def main(
    run: Annotated[Path, typer.Argument(help="Finished run of `ner`.")] = Path("runs/quickstart"),
) -> None:
    """Measure all ways to store states, and print the table."""
    torch.set_num_threads(1)
    blueprint, task_file = open_run(current_folder(run))
    own = prepare_split(blueprint, "test", task_file.labels).splits["test"].rows
    rows = [{"doc_id": row.origin.doc_id, "tokens": list(row.words)} for row in own]
    gold = [entities(row.tags) for row in own]
    found = [_measured(tsarch.load(run), rows, gold, "read each time", 0)]
    for stored_as in get_args(StoredAs):
        with tempfile.TemporaryDirectory() as folder:
            num_bytes = _store(tsarch.load(run), rows, Path(folder), stored_as)
            pair = tsarch.load(run, store=folder)
            found.append(_measured(pair, rows, gold, stored_as, num_bytes))
    print("\n".join(_table(found)))


def _store(pair: TrainedPair, rows: Sequence[Any], folder: Path, stored_as: StoredAs) -> float:
    """Bytes a token of a store that is written."""
    writer = StateWriter(folder, stored_as, pair.revision)
    for key, states in pair.read_missing(pair.prepare(rows), writer.known):
        writer.add(key, EncodedStates.of(states, stored_as))
    writer.flush()
    return writer.size().bytes_a_token


def _measured(
    pair: TrainedPair, rows: Sequence[Any], gold: Sequence[Spans], name: str, num_bytes: float
) -> Measured:
    pair.predict(rows[:8], "student")  # what is made once is made
    started = time.process_time()
    student = pair.predict(rows, "student")
    seconds = time.process_time() - started
    joint = pair.predict(rows, "joint")
    return Measured(name, num_bytes, _f1(gold, student), _f1(gold, joint), seconds)


def _f1(gold: Sequence[Spans], answers: Iterable[Any]) -> float:
    return entity_f1(gold, [[(own.type, own.first, own.stop) for own in row] for row in answers])


def _table(found: Sequence[Measured]) -> list[str]:
    lines = [
        "| states | bytes a token | `student`, F1 | `joint`, F1 | `student`, CPU s |",
        "|---|---|---|---|---|",
    ]
    for own in found:
        scores = f"{own.student_f1:.4f} | {own.joint_f1:.4f} | {own.student_s:.2f}"
        lines.append(f"| {own.stored_as} | {own.bytes_a_token:,.0f} | {scores} |")
    return lines


if __name__ == "__main__":
    typer.run(main)
