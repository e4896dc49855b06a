"""`tsarch predict`: answers for files, in order, whatever their length, and again from where a run
of it stopped."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from tsarch.config import Mode
from tsarch.errors import Mistake, UserError
from tsarch.prediction.inputs import Predicted
from tsarch.prediction.outputs import write_table
from tsarch.prediction.streams import FileInput, InputFile, input_files
from tsarch.prediction.trained_pair import TrainedPair

_CHUNK = 1024
"""Inputs that are answered together, at least."""
PROBLEM, PREDICTION = "problem", "prediction"
"""Fields of an output row beside the input's own."""


@dataclass(frozen=True)
class BatchProgress:
    """How far a batch is."""

    inputs: int
    bytes_read: int
    num_bytes: int
    """Of all files."""


@dataclass(frozen=True)
class BatchResult:
    """What became of a batch."""

    inputs: int
    bad: int
    skipped: int
    """Inputs that an earlier run had answered."""


class _Journal:
    """What of a batch is done: answers so far and their number, beside the output to be."""

    def __init__(self, output: Path, job: dict[str, Any]) -> None:
        self._answers = output.with_name(output.name + ".part")
        self._state = output.with_name(output.name + ".part.json")
        self._job = job
        self.inputs, self.bad = 0, 0
        self._bytes = 0

    def resume(self) -> None:
        """Take up what an earlier run of the same job left.

        Raises:
            UserError: it was another job.
        """
        if not self._state.is_file() or not self._answers.is_file():
            self._answers.unlink(missing_ok=True)
            return
        state = json.loads(self._state.read_text(encoding="utf-8"))
        if state["job"] != self._job:
            hint = "Give --restart to begin anew, or another --output."
            what = "was begun with other files, another run or another mode."
            raise UserError.single(str(self._state), what, hint)
        self.inputs, self.bad, self._bytes = state["inputs"], state["bad"], state["bytes"]
        os.truncate(self._answers, self._bytes)

    def discard(self) -> None:
        """Forget an earlier run."""
        self._state.unlink(missing_ok=True)
        self._answers.unlink(missing_ok=True)

    def add(self, lines: Sequence[str], bad: int) -> None:
        """Keep the next answers."""
        with self._answers.open("a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
            self._bytes = file.tell()
        self.inputs += len(lines)
        self.bad += bad
        state = {"job": self._job, "inputs": self.inputs, "bad": self.bad, "bytes": self._bytes}
        new = self._state.with_name(self._state.name + ".new")
        new.write_text(json.dumps(state), encoding="utf-8")
        new.replace(self._state)

    def finish(self, output: Path) -> None:
        """Put the answers where they belong, in the form that the ending of `output` says."""
        self._answers.touch()
        write_table(self._answers, output)
        self.discard()


def predict_files(
    pair: TrainedPair,
    inputs: Sequence[str],
    output: Path,
    mode: Mode | None = None,
    skip_bad: bool = False,
    restart: bool = False,
    identity: str = "",
    on_progress: Callable[[BatchProgress], None] = lambda progress: None,
) -> BatchResult:
    """Answer all inputs of files, in their order, into one file.

    A row of the output is that of the input (a text: its column `text`) with `prediction`, or, of
    an input that can't be read, with `problem`. Rows of one `doc_id` that follow one another are
    read together.

    Args:
        inputs: paths, globs or fsspec URLs of JSON Lines, CSV, Parquet or plain texts (a line is an
            input).
        skip_bad: go on where an input can't be read, and say so in its row.
        restart: begin anew, though an earlier run was interrupted.
        identity: what predicts, so that an interrupted run is only gone on with by the same.

    Raises:
        UserError: a file or (without `skip_bad`) an input can't be read. What is answered so far is
            kept, and the same call goes on from there.
    """
    files = [InputFile(path) for path in input_files(inputs)]
    sizes = {own.path: own.size for own in files}
    job = {"files": sizes, "mode": mode or pair.default_mode, "by": identity}
    journal = _Journal(output, job)
    if restart:
        journal.discard()
    journal.resume()
    skipped = journal.inputs
    for chunk in _chunks(files, skipped, pair.document_column):
        lines, problems = _answered(pair, chunk, mode)
        if problems and not skip_bad:
            raise UserError(problems)
        journal.add(lines, len(problems))
        read = sum(own.position for own in files)
        on_progress(BatchProgress(journal.inputs, read, sum(sizes.values())))
    journal.finish(output)
    return BatchResult(journal.inputs, journal.bad, skipped)


def _chunks(
    files: Sequence[InputFile], skipped: int, document: str | None
) -> Iterator[list[FileInput]]:
    """Inputs that are answered together, without the first `skipped`; a document stays whole."""
    chunk: list[FileInput] = []
    last = None
    for file in files:
        for own in file:
            if skipped > 0:
                skipped -= 1
                continue
            current = _document(own, document)
            if len(chunk) >= _CHUNK and (current is None or current != last):
                yield chunk
                chunk = []
            last = current
            chunk.append(own)
        if chunk:  # documents don't go on in another file
            yield chunk
            chunk = []


def _document(own: FileInput, column: str | None) -> Any:
    if column is None or not isinstance(own.value, dict):
        return None
    return own.value.get(column)


def _answered(
    pair: TrainedPair, chunk: Sequence[FileInput], mode: Mode | None
) -> tuple[list[str], list[Mistake]]:
    """The output's lines, and what is wrong with inputs."""
    problems = {place: own.problem for place, own in enumerate(chunk) if own.value is None}
    sound = [(place, own.value) for place, own in enumerate(chunk) if own.value is not None]
    found, wrong = pair.try_predict([value for _, value in sound], mode)
    problems |= {sound[number][0]: what for number, what in wrong.items()}
    answers = {sound[number][0]: answer for number, answer in found.items()}
    lines = []
    for place, own in enumerate(chunk):
        row = {"text": own.value} if isinstance(own.value, str) else dict(own.value or {})
        if place in problems:
            row[PROBLEM] = f"{own.place}: {problems[place]}"
        else:
            row[PREDICTION] = as_json(answers[place])
        lines.append(json.dumps(row, ensure_ascii=False, default=str))
    return lines, [Mistake(chunk[n].place, what) for n, what in sorted(problems.items())]


def as_json(predicted: Predicted) -> Any:
    """A prediction as plain values, all of which JSON has; `kind` names what it is. A score of −∞
    is null."""
    if isinstance(predicted, tuple):
        return [as_json(own) for own in predicted]
    assert is_dataclass(predicted)
    score = predicted.score if math.isfinite(predicted.score) else None
    return {"kind": KINDS[type(predicted).__name__], **asdict(predicted), "score": score}


KINDS = {
    "Entity": "entity",
    "TextEntity": "entity",
    "Label": "label",
    "Relation": "relation",
    "SpanAnswer": "answer",
    "NoAnswer": "no_answer",
    "GeneratedText": "text",
}
