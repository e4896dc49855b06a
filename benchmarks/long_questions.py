"""What a question of a long text costs and gets right, where the whole text is read, and where a
scorer chooses two windows of it (`student.scorer`).

Texts are passages of a run's test split put together, so many a text, each from another place of
the split; every question of these is asked of the text that its passage is in. One thread, one
question a call; the teacher has read the text. Milliseconds are CPU time, means over questions.
"Answer read" is the share of questions with a word of the first right answer in what is read.

    python -m benchmarks.long_questions runs/qa-scored --passages 1,4,16
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

import tsarch
from tsarch.pair.answering import Answering
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.prepare import prepare_split
from tsarch.run.saved_run import open_run
from tsarch.run.versions import current_folder
from tsarch.serving.state_cache import StateCache
from tsarch.tasks.answers import SpanAnswer
from tsarch.tasks.scripts import writing
from tsarch.tasks.squad import score_answer


@dataclass(frozen=True)
class Measured:
    """Questions of texts of some length."""

    num_passages: int
    tokens: float
    """Of a text, mean."""
    read_share: float
    """Of questions, with the answer in what is read."""
    f1: float
    ask_ms: float


def main(
    run: Annotated[Path, typer.Argument(help="Finished run of `qa` with `student.scorer`.")],
    passages: Annotated[str, typer.Option(help="Passages a text, with commas between.")] = "1,4,16",
    most: Annotated[int, typer.Option(help="Questions that are asked at most.")] = 10_000,
) -> None:
    """Measure, and print a table."""
    torch.set_num_threads(1)
    blueprint, task_file = open_run(current_folder(run))
    if blueprint.scorer is None:
        raise typer.BadParameter(f"{run} has no scorer")
    rows = prepare_split(blueprint, "test", task_file.labels).splits["test"].rows
    pair = tsarch.load(run, device="cpu")
    print("| passages a text | tokens | what is read | answer read | F1 | CPU ms a question |")
    print("|---|---|---|---|---|---|")
    for number in map(int, passages.split(",")):
        for name, is_scored in (("all of it", False), ("chosen windows", True)):
            found = measured(pair, rows, number, is_scored, most)
            figures = f"{found.read_share:.3f} | {found.f1:.4f} | {found.ask_ms:.0f}"
            print(f"| {number} | {found.tokens:,.0f} | {name} | {figures} |", flush=True)


def texts_of(rows: Sequence[Any], number: int) -> list[tuple[str, list[Any]]]:
    """Texts of so many passages, and the rows that are asked of each."""
    asked: dict[str, list[Any]] = {}
    for row in rows:
        asked.setdefault(row.passage, []).append(row)
    own = list(asked)
    count = max(len(own) // number, 1)
    groups = [own[start::count][:number] for start in range(count)]
    return [("\n".join(group), [row for each in group for row in asked[each]]) for group in groups]


def measured(
    pair: TrainedPair, rows: Sequence[Any], number: int, is_scored: bool, most: int
) -> Measured:
    """Questions of texts of so many passages; `is_scored`: the scorer chooses what is read."""
    answering = pair._answering
    assert isinstance(answering, Answering)
    answering.is_scored = is_scored
    tokens: list[float] = []
    scores: list[float] = []
    costs: list[float] = []
    read: list[bool] = []
    pair.keep_states(StateCache(1 << 30).part("", pair.revision))
    for text, asked in texts_of(rows, number):
        context = pair.read(text)
        split = pair.prepare([{"context": text, "question": "?"}]).split
        assert split is not None
        tokens.append(int(split.context_lengths.sum()))
        for row in asked:
            if len(scores) == most:
                break
            started = time.process_time()
            answer = context.predict(row.question, "student")
            costs.append(time.process_time() - started)
            read.append(is_read(pair, text, row))
            said = answer.text if isinstance(answer, SpanAnswer) else ""
            scores.append(score_answer(said, row.answers or (), writing(row.passage)).f1)
    means = statistics.mean(read), statistics.mean(scores), 1000 * statistics.mean(costs)
    return Measured(number, statistics.mean(tokens), *means)


def is_read(pair: TrainedPair, text: str, row: Any) -> bool:
    """Whether the student reads a word of a row's first answer, where it stands in its passage."""
    asked = pair.prepare([{"context": text, "question": row.question}])
    _, found = pair.scores(asked, "student")
    assert found is not None
    split, scores = found
    bounds = np.concatenate([piece.bounds for piece in split.pieces[0]])
    start, stop = (text.index(row.passage) + own for own in row.spans[0])
    inside = (bounds[:, 1] > start) & (bounds[:, 0] < stop)
    return bool(np.isfinite(scores[inside]).any())


if __name__ == "__main__":
    typer.run(main)
