"""What of inputs isn't read, because it is longer than what models have room for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from tsarch.config import Mode
from tsarch.data.cuts import Span
from tsarch.inputs.rows import Gap, Inputs, PartlyRead, Predicted
from tsarch.records import Cut, TokenizedSplit
from tsarch.tasks.answers import Answer
from tsarch.tasks.relation import MarkedEntities

OnUnread = Literal["error", "mark", "parts"]
"""What is done about inputs that can't be read whole: they aren't answered; the answer says what
of them wasn't read (`PartlyRead`); or, of sources of texts, they are read in parts, whose texts are
put together. (All other tasks read long inputs in parts anyway, as far as that makes sense.)"""


def gaps(own: Inputs, splits: Iterable[TokenizedSplit], mode: Mode) -> dict[int, list[Gap]]:
    """Input → what of it a mode doesn't read."""
    found: dict[int, list[Gap]] = {}
    for split in splits:
        for cut in split.cuts:
            if cut.is_read and mode != "student_alone":
                continue  # the teacher has read it
            for place, spans in zip(cut.rows, cut.spans, strict=True):
                row = split.rows[place]
                unread = found.setdefault(own.owner(row), [])
                unread += [Gap(cut.what, *span) for span in _as_given(own, row, cut, spans)]
    return {number: unread for number, unread in found.items() if unread}


def with_unread(
    own: Inputs,
    splits: Sequence[TokenizedSplit],
    found: Iterator[tuple[Answer, ...]],
    mode: Mode,
    on_unread: OnUnread,
) -> tuple[dict[int, Predicted], dict[int, str]]:
    """Answers to inputs, the next of `found`, and what is wrong with inputs; see `OnUnread`."""
    by_split = [(split, list(itertools.islice(found, len(split.rows)))) for split in splits]
    answers: dict[int, Any] = {**own.answers(by_split)}
    problems = dict(own.problems)
    for number, unread in gaps(own, splits, mode).items():
        if on_unread == "mark":
            answers[number] = PartlyRead(answers[number], tuple(unread))
        else:
            problems[number] = told_gaps(unread)
    return {n: own for n, own in answers.items() if n not in problems}, problems


def told_gaps(gaps: Sequence[Gap], other: str | None = "see on_unread (--on-unread)") -> str:
    """As the reason why an input isn't answered; `other`: what can be done but to split it."""
    reasons = ", ".join(dict.fromkeys(gap.what for gap in gaps))
    hint = "" if other is None else f", or {other}"
    return f"can't be read whole: {reasons}. Split it into several{hint}."


def _as_given(
    own: Inputs, row: Any, cut: Cut, spans: Iterable[Span]
) -> Iterator[tuple[int, int, str]]:
    """Spans of a row, and what they count, as they are in what the user gave."""
    text = own.texts.get(own.owner(row))
    for start, stop in spans:
        if text is not None:
            number = row.origin.place.number - 1
            bounds = text.bounds[number - own.owners.index(own.owners[number])]
            yield int(bounds[start, 0]), int(bounds[stop - 1, 1]), "text"
        elif isinstance(row, MarkedEntities):
            start, stop = _without_marks(row, start, stop)
            if start < stop:
                yield start, stop, cut.of
        else:
            yield start, stop, cut.of


def _without_marks(row: MarkedEntities, start: int, stop: int) -> Span:
    """A span of words without the marks around entities."""
    return (
        start - sum(mark < start for mark in row.marks),
        stop - sum(mark < stop for mark in row.marks),
    )
