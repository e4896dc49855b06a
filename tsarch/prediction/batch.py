"""`tsarch predict`: answers for files, in order, whatever their length, and again from where a run
of it stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tsarch.config import Mode
from tsarch.data.sources import STDIN
from tsarch.errors import Mistake, UserError
from tsarch.inputs.files import InputFile, input_files
from tsarch.inputs.reading import Reading
from tsarch.inputs.rows import PartlyRead, Predicted
from tsarch.prediction.journal import Journal, Sink, StandardOutput
from tsarch.prediction.outputs import PREDICTION, PROBLEM
from tsarch.prediction.pieces import Piece
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.prediction.unread import OnUnread
from tsarch.prediction.working import Working, working_here

STDOUT = "-"
"""In place of an output's path: standard output."""


@dataclass(frozen=True)
class BatchProgress:
    """How far a batch is."""

    inputs: int
    bytes_read: int
    num_bytes: int
    """Of all files; 0: nobody knows."""
    begun_bytes: int = 0
    """That were read before the last piece."""


@dataclass(frozen=True)
class BatchResult:
    """What became of a batch."""

    inputs: int
    bad: int
    partly_read: int
    """Whose answers say what of them wasn't read."""
    skipped: int
    """Inputs that an earlier run had answered."""
    rows: int
    """Of the output."""
    notes: tuple[str, ...] = ()
    """On how files were read."""


@dataclass(frozen=True)
class Answered:
    """What became of a piece."""

    lines: list[bytes]
    """Of the output, a row of JSON for each input."""
    columns: list[str]
    """That rows have, in the order in which they first come."""
    problems: list[Mistake]
    partly_read: int
    """Inputs of which a part wasn't read, as their answers say."""
    begun_bytes: int
    bytes_read: int
    notes: tuple[str, ...]
    inputs: int | None = None
    """That the lines are of; None: each of one."""


def predict_files(
    pair: TrainedPair,
    inputs: Sequence[str],
    output: Path,
    mode: Mode | None = None,
    skip_bad: bool = False,
    restart: bool = False,
    identity: str = "",
    on_progress: Callable[[BatchProgress], None] = lambda progress: None,
    reading: Reading | None = None,
    on_unread: OnUnread = "error",
) -> BatchResult:
    """Answer all inputs of files, in their order, into one file.

    A row of the output is that of the input (a text: its column `text`) with `prediction`, or, of
    an input that can't be read, with `problem`. Rows of one `doc_id` that follow one another are
    read together.

    Args:
        inputs: paths, globs or fsspec URLs in the formats that data is trained on, or of plain
            texts (a line is an input); `-`: standard input.
        output: `-`: standard output, as JSON Lines.
        skip_bad: go on where an input can't be read, and say so in its row.
        restart: begin anew, though an earlier run was interrupted.
        identity: what predicts, so that an interrupted run is only gone on with by the same.
        reading: how the files are read. Default: as what the pair was trained on.
        on_unread: what is done about inputs that can't be read whole; see `TrainedPair.predict`.

    Raises:
        UserError: a file or (without `skip_bad`) an input can't be read. What is answered so far is
            kept, and the same call goes on from there.
    """
    reading = reading or pair.reading
    files = input_files(inputs, "tags" in reading.names)
    mode = mode or pair.default_mode
    pair.check_unread(on_unread)
    by = f"{told_way(mode, on_unread)} {identity}"
    job = BatchJob(files, reading, output, by, skip_bad, restart)
    work = partial(answered, mode=mode, on_unread=on_unread)
    return job.run(working_here(pair, work), on_progress)


def told_way(mode: Mode, on_unread: OnUnread) -> str:
    """How inputs are answered, to be told from other ways."""
    return mode if on_unread == "error" else f"{mode} on_unread={on_unread}"


@dataclass(frozen=True)
class BatchJob:
    """Files to answer."""

    files: Sequence[str]
    reading: Reading
    output: Path
    identity: str
    """What predicts, and who."""
    skip_bad: bool
    restart: bool

    def run(
        self, answering: Working[Answered], on_progress: Callable[[BatchProgress], None]
    ) -> BatchResult:
        """Answer them; see `predict_files`."""
        sizes = [InputFile(path, self.reading).size for path in self.files]
        sink = self._sink()
        skipped = sink.inputs
        notes: dict[str, None] = {}
        num_bytes = 0 if STDIN in self.files else sum(sizes)
        try:
            for own in answering(self.files, self.reading, skipped):
                if own.problems and not self.skip_bad:
                    raise UserError(own.problems)
                sink.add(own.lines, own.columns, len(own.problems), own.partly_read, own.inputs)
                notes.update(dict.fromkeys(own.notes))
                on_progress(BatchProgress(sink.inputs, own.bytes_read, num_bytes, own.begun_bytes))
        finally:
            sink.close()
        sink.finish()
        return BatchResult(
            sink.inputs, sink.bad, sink.partly_read, skipped, sink.rows, tuple(notes)
        )

    @property
    def is_resumable(self) -> bool:
        """Whether a call that was interrupted can be gone on with."""
        return STDIN not in self.files and str(self.output) != STDOUT

    def _sink(self) -> Sink:
        if str(self.output) == STDOUT:
            return StandardOutput()
        opened = [InputFile(path, self.reading) for path in self.files]
        job = {
            "files": [[own.path, own.size, own.version] for own in opened],
            "by": self.identity,
            "read": self.reading.data.model_dump(mode="json"),
        }
        journal = Journal(self.output, job)
        if self.restart or not self.is_resumable:
            journal.discard()
        journal.resume()
        return journal


def answered(
    pair: TrainedPair, piece: Piece, mode: Mode | None, on_unread: OnUnread = "error"
) -> Answered:
    """Answers to a piece."""
    own = piece.inputs
    problems = {place: given.problem for place, given in enumerate(own) if given.value is None}
    sound = [(place, given.value) for place, given in enumerate(own) if given.value is not None]
    found, wrong = pair.try_predict([value for _, value in sound], mode, on_unread)
    problems |= {sound[number][0]: what for number, what in wrong.items()}
    answers = {sound[number][0]: answer for number, answer in found.items()}
    lines = []
    columns: dict[str, None] = {}
    for place, given in enumerate(own):
        row = dict(given.row)
        if place in problems:
            row[PROBLEM] = f"{given.place}: {problems[place]}"
        else:
            row[PREDICTION] = as_json(answers[place])
        if not row.keys() <= columns.keys():
            columns.update(dict.fromkeys(row))
        lines.append(as_line(row))
    mistakes = [Mistake(own[n].place, what) for n, what in sorted(problems.items())]
    partly = sum(isinstance(own, PartlyRead) for own in found.values())
    return Answered(
        lines, list(columns), mistakes, partly, piece.begun_bytes, piece.bytes_read, piece.notes
    )


_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str, allow_nan=False)  # once: it takes time


def as_line(row: dict[str, Any]) -> bytes:
    """A row as a line of JSON, which has no NaN and no half of a surrogate pair."""
    try:
        text = _ENCODER.encode(row)
    except ValueError:
        text = json.dumps(_finite(row), ensure_ascii=False, default=str)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(json.loads(text)).encode() + b"\n"


def _finite(value: Any) -> Any:
    """The same with null in place of numbers that JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    return [_finite(own) for own in value] if isinstance(value, list | tuple) else value


def as_json(predicted: Predicted) -> Any:
    """A prediction as plain values, all of which JSON has; `kind` names what it is. A score of −∞
    is null."""
    if isinstance(predicted, tuple):
        return [as_json(own) for own in predicted]
    if isinstance(predicted, PartlyRead):
        unread = [asdict(gap) for gap in predicted.unread]
        return {"kind": "partly_read", "answer": as_json(predicted.answer), "unread": unread}
    assert is_dataclass(predicted)
    score = predicted.score if math.isfinite(predicted.score) else None
    # `asdict` would take longer than all else here.
    return {"kind": KINDS[type(predicted).__name__], **vars(predicted), "score": score}


KINDS = {
    "Entity": "entity",
    "TextEntity": "entity",
    "Label": "label",
    "Relevance": "relevance",
    "Relation": "relation",
    "SpanAnswer": "answer",
    "NoAnswer": "no_answer",
    "GeneratedText": "text",
}
