"""What a question of a long text costs and gets right, where the whole text is read, where a scorer
chooses two windows of it (`student.scorer`), and where a teacher reads the question with it.

Texts are passages of a run's test split put together, so many a text, each from another place of
the split; every question of these is asked of the text that its passage is in. One thread, one
question a call. Milliseconds are CPU time, means over texts (reading, once) and questions (asking).
"Answer read" is the share of questions with a word of the first right answer in what is read.

    python -m benchmarks.long_questions runs/qa-scored --passages 1,4,16 --against runs/qa
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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

Ask = Callable[[str], Any]
"""Question → answer, of a text."""
Text = tuple[str, list[Any]]
"""A text, and the rows that are asked of it."""


@dataclass(frozen=True)
class Measured:
    """Questions of texts of some length."""

    f1: float
    read_ms: float
    """Of a text, before it is asked."""
    ask_ms: float

    def cells(self, read_share: float | None) -> str:
        """Of the table. `read_share`: of questions, with the answer in what is read."""
        share = "–" if read_share is None else f"{read_share:.3f}"
        return f"{share} | {self.f1:.4f} | {self.read_ms:.0f} | {self.ask_ms:.0f}"


def main(
    run: Annotated[Path, typer.Argument(help="Finished run of `qa` with `student.scorer`.")],
    passages: Annotated[str, typer.Option(help="Passages a text, with commas between.")] = "1,4,16",
    most: Annotated[int, typer.Option(help="Questions that are asked at most.")] = 10_000,
    against: Annotated[
        Path | None, typer.Option(help="Run of `qa` whose teacher reads the question.")
    ] = None,
) -> None:
    """Measure, and print a table."""
    torch.set_num_threads(1)
    blueprint, task_file = open_run(current_folder(run))
    if blueprint.scorer is None:
        raise typer.BadParameter(f"{run} has no scorer")
    rows = prepare_split(blueprint, "test", task_file.labels).splits["test"].rows
    pair = tsarch.load(run, device="cpu")
    answering = pair._answering
    assert isinstance(answering, Answering)
    other = None if against is None else tsarch.load(against, device="cpu", modes=["teacher"])
    print("| passages a text | tokens | what is read | answer read | F1 | ms to read | ms to ask |")
    print("|---|---|---|---|---|---|---|")
    for number in map(int, passages.split(",")):
        texts = texts_of(rows, number, most)
        start = f"| {number} | {mean_tokens(pair, texts):,.0f} |"
        for name, is_scored in (("all of it", False), ("chosen windows", True)):
            answering.is_scored = is_scored
            found = measured(texts, partial(read_once, pair))
            share = statistics.mean(is_read(pair, text, row) for text, own in texts for row in own)
            print(f"{start} {name} | {found.cells(share)} |", flush=True)
        if other is not None:
            found = measured(texts, partial(read_each_time, other))
            print(f"{start} all of it, with the question | {found.cells(None)} |", flush=True)


def texts_of(rows: Sequence[Any], number: int, most: int) -> list[Text]:
    """Texts of so many passages, and the rows that are asked of each, `most` in all."""
    asked: dict[str, list[Any]] = {}
    for row in rows:
        asked.setdefault(row.passage, []).append(row)
    own = list(asked)
    count = max(len(own) // number, 1)
    texts: list[Text] = []
    for start in range(count):
        group = own[start::count][:number]
        wanted = [row for each in group for row in asked[each]][:most]
        most -= len(wanted)
        if wanted:
            texts.append(("\n".join(group), wanted))
    return texts


def mean_tokens(pair: TrainedPair, texts: Sequence[Text]) -> float:
    """Of a text."""
    splits = [pair.prepare([{"context": text, "question": "?"}]).split for text, _ in texts]
    return statistics.mean(int(own.context_lengths.sum()) for own in splits if own is not None)


def read_once(pair: TrainedPair, text: str) -> Ask:
    """The text is read now, without a question."""
    pair.keep_states(StateCache(1 << 30).part("", pair.revision))  # of no other text
    context: Any = pair.read(text)
    return lambda question: context.predict(question, "student")


def read_each_time(pair: TrainedPair, text: str) -> Ask:
    """The text is read with each question."""
    return lambda question: pair.predict([{"context": text, "question": question}], "teacher")[0]


def measured(texts: Sequence[Text], read: Callable[[str], Ask]) -> Measured:
    """All questions of all texts."""
    scores, read_s, ask_s = [], [], []
    for text, rows in texts:
        started = time.process_time()
        ask = read(text)
        read_s.append(time.process_time() - started)
        for row in rows:
            started = time.process_time()
            answer = ask(row.question)
            ask_s.append(time.process_time() - started)
            said = answer.text if isinstance(answer, SpanAnswer) else ""
            scores.append(score_answer(said, row.answers or (), writing(row.passage)).f1)
    mean = statistics.mean
    return Measured(mean(scores), 1000 * mean(read_s), 1000 * mean(ask_s))


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
