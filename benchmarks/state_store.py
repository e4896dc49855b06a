"""What stored states of the teacher take, and how good the answers from them are.

The documents of a run's test split are read into a store of each kind (`tsarch read`), and answered
from it: strict entity F1, by the words of the rows, or of `qa` the F1 of SQuAD's script. CPU
seconds are the process's own. Bytes are those on the disk without the components that states of
fewer dimensions are told by, which a file has once.

    python -m benchmarks.state_store runs/quickstart
    python -m benchmarks.state_store runs/qa-read-once --dimensions 288,192,144,96
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer

import tsarch
from benchmarks.inference_table import entity_f1
from tsarch.config import Mode
from tsarch.pair.projection import Projection
from tsarch.pair.state_files import EncodedStates, StoredAs
from tsarch.pair.state_folder import StateWriter
from tsarch.prediction.components import fitted_projection
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.prepare import prepare_split
from tsarch.run.saved_run import open_run
from tsarch.run.versions import current_folder
from tsarch.tasks.answers import SpanAnswer
from tsarch.tasks.ner import entities
from tsarch.tasks.scripts import writing
from tsarch.tasks.squad import score_answer

Score = Callable[[Sequence[Any]], float]
"""F1 of answers to all rows."""


@dataclass(frozen=True)
class Kind:
    """A way to store states."""

    stored_as: StoredAs
    dimensions: int | None = None

    @property
    def name(self) -> str:
        """In the table."""
        return self.stored_as if self.dimensions is None else f"{self.stored_as}, {self.dimensions}"


@dataclass(frozen=True)
class Measured:
    """Answers from states that are stored in a way."""

    name: str
    bytes_a_token: float
    """0: nothing is stored."""
    f1: dict[Mode, float]
    student_s: float
    """CPU seconds of all answers of `student`."""


def main(
    run: Annotated[Path, typer.Argument(help="Finished run of `ner` or `qa`.")] = Path(
        "runs/quickstart"
    ),
    dimensions: Annotated[str, typer.Option(help="Numbers of dimensions, with commas.")] = "",
) -> None:
    """Measure all ways to store states, and print the table."""
    torch.set_num_threads(1)
    blueprint, task_file = open_run(current_folder(run))
    own = prepare_split(blueprint, "test", task_file.labels).splits["test"].rows
    rows, score = (_questions if blueprint.task.name == "qa" else _sentences)(own)
    found = [_measured(tsarch.load(run), rows, score, "read each time", 0)]
    kinds = [Kind(stored_as) for stored_as in get_args(StoredAs)]
    numbers = [int(number) for number in dimensions.split(",") if number]
    kinds += [Kind(stored_as, n) for stored_as in ("fp32", "int8") for n in numbers]
    for kind in kinds:
        pair, projection = tsarch.load(run), None
        if kind.dimensions is not None:
            projection = fitted_projection(pair, blueprint, task_file.labels, kind.dimensions)
        with tempfile.TemporaryDirectory() as folder:
            num_bytes = _store(pair, rows, Path(folder), kind, projection)
            pair = tsarch.load(run, store=folder)
            found.append(_measured(pair, rows, score, kind.name, num_bytes))
    print("\n".join(_table(found)))


def _sentences(own: Sequence[Any]) -> tuple[list[dict[str, Any]], Score]:
    """Rows of `ner`, and how answers to them are scored."""
    gold = [entities(row.tags) for row in own]

    def score(answers: Sequence[Any]) -> float:
        said = [[(each.type, each.first, each.stop) for each in row] for row in answers]
        return entity_f1(gold, said)

    return [{"doc_id": row.origin.doc_id, "tokens": list(row.words)} for row in own], score


def _questions(own: Sequence[Any]) -> tuple[list[dict[str, Any]], Score]:
    """The same of `qa`."""

    def score(answers: Sequence[Any]) -> float:
        texts = [each.text if isinstance(each, SpanAnswer) else "" for each in answers]
        pairs = zip(texts, own, strict=True)
        return statistics.mean(
            score_answer(text, row.answers or (), writing(row.passage)).f1 for text, row in pairs
        )

    return [{"context": row.passage, "question": row.question} for row in own], score


def _store(
    pair: TrainedPair,
    rows: Sequence[Any],
    folder: Path,
    kind: Kind,
    projection: Projection | None,
) -> float:
    """Bytes a token of a store that is written."""
    writer = StateWriter(folder, kind.stored_as, pair.revision, kind.dimensions)
    writer.projection = projection
    for key, states in pair.read_missing(pair.prepare(rows), writer.known):
        writer.add(key, EncodedStates.of(states, kind.stored_as, projection))
    writer.flush()
    parts = {} if projection is None else projection.parts()
    once = sum(part.nbytes for part in parts.values()) * len(list(folder.iterdir()))
    size = writer.size()
    return (size.num_bytes - once) / size.tokens


def _measured(
    pair: TrainedPair, rows: Sequence[Any], score: Score, name: str, num_bytes: float
) -> Measured:
    answer = partial(pair.try_predict, rows)
    pair.try_predict(rows[:8], "student")  # what is made once is made
    started = time.process_time()
    said: dict[Mode, dict[int, Any]] = {"student": answer("student")[0]}
    seconds = time.process_time() - started
    if "joint" in pair.modes:
        said["joint"] = answer("joint")[0]
    f1 = {mode: score([own.get(n) for n in range(len(rows))]) for mode, own in said.items()}
    return Measured(name, num_bytes, f1, seconds)


def _table(found: Sequence[Measured]) -> list[str]:
    modes = list(found[0].f1)
    heads = " | ".join(f"`{mode}`, F1" for mode in modes)
    lines = [f"| states | bytes a token | {heads} | `student`, CPU s |"]
    lines.append("|---" * (3 + len(modes)) + "|")
    for own in found:
        scores = " | ".join(f"{own.f1[mode]:.4f}" for mode in modes)
        lines.append(f"| {own.name} | {own.bytes_a_token:,.0f} | {scores} | {own.student_s:.2f} |")
    return lines


if __name__ == "__main__":
    typer.run(main)
