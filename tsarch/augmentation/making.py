"""What `tsarch augment` makes of a piece of its inputs: rows with labels, and with where they come
from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tsarch.augmentation.agreement import LEFT_OUT, Judge
from tsarch.augmentation.labelled_rows import Labelled, RowFile, with_answer
from tsarch.config import Mode
from tsarch.errors import Mistake
from tsarch.inputs.files import FileInput
from tsarch.inputs.rows import PartlyRead
from tsarch.prediction.batch import Answered, as_line
from tsarch.prediction.pieces import Piece
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.prediction.unread import told_gaps
from tsarch.tasks.answers import GeneratedText

if TYPE_CHECKING:
    from tsarch.augmentation.methods import Settings

MADE_BY, MADE_FROM, SCORE = "made_by", "made_from", "score"
"""Columns of a row beside the task's own: the method, the input's place, and how likely the pair
takes its labels to be, 0 to 1."""

Alter = Callable[[Sequence[Labelled], int], list[Labelled | None]]
"""Labelled rows and the number of a copy → the altered rows; None: nothing of a row could be."""


@dataclass(frozen=True)
class Scored:
    """A row that was made."""

    labelled: Labelled
    score: float


def labels_of(
    pair: TrainedPair, mode: Mode, inputs: Sequence[FileInput]
) -> tuple[list[Scored], dict[int, str]]:
    """The inputs as rows with the labels that a mode gives them, and number of an input → what is
    wrong with it."""
    problems = {n: own.problem for n, own in enumerate(inputs) if own.value is None}
    sound = [(n, own) for n, own in enumerate(inputs) if own.value is not None]
    values = [own.value for _, own in sound if own.value is not None]
    found: list[Scored] = []
    if pair.writes:
        prepared = pair.prepare(values)
        ((answers, wrong),) = pair.answer([prepared], mode, on_unread="mark")
        rows = (
            {}
            if prepared.split is None
            else {prepared.inputs.owner(row): row for row in prepared.split.rows}
        )
        for place, answer in sorted(answers.items()):
            if isinstance(answer, PartlyRead):
                wrong[place] = told_gaps(answer.unread, LEFT_OUT)
                continue
            assert isinstance(answer, GeneratedText)
            if answer.text.strip():
                own = _labelled(pair, *sound[place], with_answer(rows[place], [answer]))
                found.append(Scored(own, min(math.exp(answer.score), 1.0)))
    else:
        said, wrong = Judge(pair, mode).read(values, whole=True)
        for each in said:
            row = with_answer(each.row, each.answers)
            own = _labelled(pair, *sound[each.owner], row)
            found.append(Scored(own, each.agreement(row)))
    return found, problems | {sound[place][0]: what for place, what in wrong.items()}


def _labelled(pair: TrainedPair, number: int, given: FileInput, row: Any) -> Labelled:
    own_id = pair.columns.get("id")
    if own_id is not None and own_id not in given.row:  # a name that no row of another file has
        row = replace(row, origin=replace(row.origin, unique_id=given.place))
    is_text = isinstance(given.value, str)
    document = given.place if is_text and hasattr(row, "tags") else given.document
    return Labelled(number, given.place, row, document, row.origin.sent_id)


def altered(
    pair: TrainedPair, mode: Mode, inputs: Sequence[FileInput], alter: Alter, name: str, copies: int
) -> tuple[list[Scored], dict[int, str]]:
    """Altered copies of labelled rows. Of a document that was altered anywhere all rows are given,
    since the teacher reads it whole."""
    file = RowFile(pair)
    rows, problems = file.read(inputs)
    made: list[Labelled] = []
    for copy in range(copies):
        own = alter(rows, copy)
        changed = {
            row.doc_id for row, new in zip(rows, own, strict=True) if new and row.doc_id is not None
        }
        for row, new in zip(rows, own, strict=True):
            if new is not None or row.doc_id in changed:
                made.append(_apart(new or row, f"{name}-{copy + 1}"))
    judge = Judge(pair, mode)
    said, wrong = judge.read([file.raw(own) for own in made])
    found = [Scored(made[each.owner], each.agreement(made[each.owner].row)) for each in said]
    unread = {made[place].number: what for place, what in wrong.items()}
    return sorted(found, key=lambda own: own.labelled.number), problems | unread


def _apart(own: Labelled, name: str) -> Labelled:
    """A row of a document by another name."""
    return own if own.doc_id is None else replace(own, doc_id=f"{own.doc_id} ({name})")


def made_of(
    pair: TrainedPair,
    piece: Piece,
    mode: Mode,
    settings: Settings,
    alter: Alter | None,
) -> Answered:
    """The rows that are made of a piece, as lines; those below `keep_above` are left out."""
    inputs, method = piece.inputs, settings.method
    if alter is None:
        found, problems = labels_of(pair, mode, inputs)
    else:
        found, problems = altered(pair, mode, inputs, alter, method, settings.copies)
    file = RowFile(pair)
    columns: dict[str, None] = {}
    lines = []
    for own in found:
        score = round(own.score, 6)
        if score < settings.keep_above:
            continue
        row = file.raw(own.labelled)
        row |= {MADE_BY: method, MADE_FROM: own.labelled.place, SCORE: score}
        columns.update(dict.fromkeys(row))
        lines.append(as_line(row))
    mistakes = [Mistake(inputs[n].place, what) for n, what in sorted(problems.items())]
    return Answered(
        lines,
        list(columns),
        mistakes,
        0,
        piece.begun_bytes,
        piece.bytes_read,
        piece.notes,
        len(inputs),
    )
