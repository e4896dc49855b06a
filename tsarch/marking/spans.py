"""Answers to questions beside the right ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any

import numpy as np

from tsarch.data.passages import Question
from tsarch.marking.records import Counts, Fault, Marks, ScoreTable, Span
from tsarch.records import TokenizedSplit
from tsarch.tasks.answers import NoAnswer, SpanAnswer
from tsarch.tasks.scripts import writing
from tsarch.tasks.squad import Score, score_answer

_KINDS = ("right", "partly_right", "wrong_answer", "missed")
_SHOWN = ["right", "partly right", "wrong", "no answer"]
_written = lru_cache(maxsize=1000)(writing)


def mark_answers(split: TokenizedSplit, said: Sequence[SpanAnswer | NoAnswer]) -> Marks:
    """The answers to all questions."""
    questions: Sequence[Question] = split.rows
    scores = [_score(*own) for own in zip(questions, said, strict=True)]
    kinds = [_kind(*own) for own in zip(questions, said, scores, strict=True)]
    faults = [
        _fault(number, questions[number], said[number], kind, scores[number])
        for number, kind in enumerate(kinds)
        if kind != "right"
    ]
    return Marks(
        sorted(faults, key=lambda own: -own.score),
        len(questions) - len(faults),
        _counts(questions, kinds),
        _table(questions, scores),
        np.array([_text(own) for own in said], dtype=object),
        np.array([score.f1 for score in scores]),
    )


def _text(said: SpanAnswer | NoAnswer) -> str:
    return said.text if isinstance(said, SpanAnswer) else ""


def _score(question: Question, said: SpanAnswer | NoAnswer) -> Score:
    return score_answer(_text(said), question.answers or (), _written(question.passage))


def _kind(question: Question, said: SpanAnswer | NoAnswer, score: Score) -> str:
    """Right to the letter, or what is wrong."""
    if score.exact == 1.0:
        return "right"
    if isinstance(said, NoAnswer):
        return "missed"
    if not question.answers:
        return "spurious"
    return "partly_right" if score.f1 > 0.0 else "wrong_answer"


def _counts(questions: Sequence[Question], kinds: Sequence[str]) -> Counts:
    """Where there is an answer and where there is none, and what was said."""
    found = Counter((bool(q.answers), kind) for q, kind in zip(questions, kinds, strict=True))
    gold, counts = ["has an answer"], [[found[True, kind] for kind in _KINDS]]
    right = [[True, False, False, False]]
    if any(not question.answers for question in questions):
        gold.append("has none")
        counts.append([0, 0, found[False, "spurious"], found[False, "right"]])
        right.append([False, False, False, True])
    return Counts(gold, _SHOWN, counts, right)


def _table(questions: Sequence[Question], scores: Sequence[Score]) -> ScoreTable:
    rows: list[list[Any]] = []
    for name, has_one in (("has an answer", True), ("has none", False)):
        own = [s for q, s in zip(questions, scores, strict=True) if bool(q.answers) == has_one]
        if own:
            exact, f1 = fmean(s.exact for s in own), fmean(s.f1 for s in own)
            rows.append([name, exact, f1, len(own)])
    return ScoreTable(["question", "exact match", "f1", "support"], rows)


def answer_spans(question: Question, said: SpanAnswer | NoAnswer, kind: str) -> tuple[Span, ...]:
    """Where the first right answer and the predicted one stand in the passage."""
    found = []
    if isinstance(said, SpanAnswer):
        found.append(Span(said.start, said.stop, kind, "right" if kind == "right" else "said"))
    if kind != "right" and question.spans:
        found.append(Span(*question.spans[0], "gold", "right"))
    return tuple(found)


def _fault(
    number: int, question: Question, said: SpanAnswer | NoAnswer, kind: str, score: Score
) -> Fault:
    gold = list(question.answers or ())
    spans = answer_spans(question, said, kind)
    details: dict[str, Any] = {
        "question": question.question,
        "text": question.passage,
        "gold": gold,
        "predicted": _text(said),
        "f1": score.f1,
        "exact_match": score.exact,
    }
    if isinstance(said, SpanAnswer):
        details |= {"start": said.start, "stop": said.stop}
    shown = " | ".join(dict.fromkeys(gold)) or "no answer"
    return Fault(number, kind, sureness(said), shown, _text(said) or "no answer", spans, details)


def sureness(said: SpanAnswer | NoAnswer) -> float:
    """The probability that log-odds mean, of an answer or of none."""
    odds = said.score if isinstance(said, SpanAnswer) else -said.score
    return 1.0 / (1.0 + math.exp(-odds)) if odds > -700.0 else 0.0
