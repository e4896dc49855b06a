"""All modes' answers to a split, marked, whatever the task."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tsarch.config import Mode
from tsarch.data.rows import Row
from tsarch.marking.entities import mark_entities, pairs
from tsarch.marking.labels import label_spans, mark_labels
from tsarch.marking.records import Fault, Marks, Snippet, Span, body_of, place_of, snippets
from tsarch.marking.spans import answer_spans, mark_answers, sureness
from tsarch.marking.texts import mark_texts
from tsarch.records import Array, FloatArray, TokenizedSplit
from tsarch.tasks.answers import Answer, Entity, GeneratedText, NoAnswer, SpanAnswer
from tsarch.tasks.base import AnsweringTask, GenerativeTask


@dataclass(frozen=True)
class ShownRow:
    """A row with an answer to it, for people."""

    place: str
    parts: list[Snippet]
    said: str
    """The answer; empty where it is marked in the row."""
    gold: str
    right: bool
    score: float | None
    question: str = ""
    """What was asked of the row."""


@dataclass(frozen=True)
class Marked:
    """A split, or some rows of it, with what all modes say."""

    rows: Sequence[Row]
    gold: Sequence[tuple[Answer, ...]]
    """The right answers, as far as there is one by itself."""
    answers: Mapping[Mode, Sequence[tuple[Answer, ...]]]
    marks: Mapping[Mode, Marks]
    unit: str
    """What modes can agree on: `words` or `rows`."""

    @property
    def are_texts(self) -> bool:
        """Whether answers are generated texts, whose scores say how good they are."""
        return any(isinstance(own, GeneratedText) for row in self.gold[:1] for own in row)

    def lines(self, modes: Sequence[Mode]) -> Iterator[str]:
        """The mistakes of some modes as JSON Lines, surest first; of texts the worst first."""
        own = [(mode, fault) for mode in modes for fault in self.marks[mode].faults]
        own.sort(key=lambda each: each[1].score if self.are_texts else -each[1].score)
        for mode, fault in own:
            yield json.dumps(self._as_json(mode, fault), ensure_ascii=False)

    def shown_fault(self, fault: Fault) -> ShownRow:
        """A mistake with its place in the row."""
        row = self.rows[fault.row]
        parts = snippets(body_of(row), fault.spans)
        question = getattr(row, "question", "")
        return ShownRow(place_of(row), parts, fault.said, fault.gold, False, fault.score, question)

    def sample(self, mode: Mode, count: int) -> list[ShownRow]:
        """Some rows with answers, evenly spread over those that have something to say."""
        telling = [n for n, own in enumerate(self.gold) if own or self.answers[mode][n]]
        places = np.linspace(0, len(telling) - 1, min(count, len(telling))).round()
        return [self._shown(mode, telling[int(place)]) for place in places]

    def _shown(self, mode: Mode, number: int) -> ShownRow:
        row, said = self.rows[number], self.answers[mode][number]
        gold = self.gold[number]
        wrong = [fault for fault in self.marks[mode].faults if fault.row == number]
        parts = snippets(body_of(row), _spans(row, gold, said, wrong))
        names = _names(gold, said, wrong)
        question = getattr(row, "question", "")
        return ShownRow(place_of(row), parts, *names, not wrong, _score(said), question)

    def _as_json(self, mode: Mode, fault: Fault) -> dict[str, Any]:
        row = self.rows[fault.row]
        return {
            "row": fault.row + 1,
            "place": place_of(row),
            "document": row.origin.doc_id,
            "mode": mode,
            "kind": fault.kind,
            "score": fault.score,
            **fault.details,
        }


def _spans(row: Any, gold: Any, said: Any, wrong: Sequence[Fault]) -> tuple[Span, ...]:
    if any(isinstance(own, Entity) for own in (*gold, *said)):
        return tuple(pair.span for pair in pairs(gold, said))
    if isinstance(said[0], SpanAnswer | NoAnswer):
        return answer_spans(row, said[0], wrong[0].kind if wrong else "right")
    return label_spans(row)


def _names(gold: Any, said: Any, wrong: Sequence[Fault]) -> tuple[str, str]:
    """(said, gold) for people; empty where they are marked in the row."""
    if any(isinstance(own, Entity) for own in (*gold, *said)):
        return "", ""
    own = said[0]
    text = "no answer" if isinstance(own, NoAnswer) else getattr(own, "name", None) or own.text
    return text, wrong[0].gold if wrong else text


def _score(said: Sequence[Answer]) -> float | None:
    match said:
        case [SpanAnswer() | NoAnswer() as own]:
            return sureness(own)
        case [Entity() | GeneratedText(), *_] | []:
            return None
        case [own, *_]:
            return own.score
    return None


def mark(task: AnsweringTask, split: TokenizedSplit, scores: Mapping[Mode, Array]) -> Marked:
    """What modes say, by their (num_words, …) scores as `AnsweringTask.answers` reads them.

    Raises:
        UserError: the split has no labels.
    """
    split.check_labels("marking")
    said = {mode: task.answers(split, own) for mode, own in scores.items()}
    gold = task.answers(split, _certain(task, split, next(iter(scores.values()))))
    marks = {mode: _marks(split, gold, said[mode], own) for mode, own in scores.items()}
    unit = "words" if _are_entities(gold, *said.values()) else "rows"
    return Marked(split.rows, gold, said, marks, unit)


def mark_generated(
    task: GenerativeTask, rows: Sequence[Any], texts: Mapping[Mode, Sequence[str]]
) -> Marked:
    """What modes have written of some rows."""
    answers = {mode: [(GeneratedText(text, 0.0),) for text in own] for mode, own in texts.items()}
    marks = {mode: mark_texts(task, rows, own) for mode, own in texts.items()}
    gold = [(GeneratedText(row.target, 0.0),) for row in rows]
    return Marked(rows, gold, answers, marks, "rows")


def _certain(task: AnsweringTask, split: TokenizedSplit, like: Array) -> FloatArray:
    """Scores of a model that is always right, shaped as those of a mode."""
    perfect = task.perfect(split)
    if perfect.shape == like.shape:
        return perfect
    certain: FloatArray = np.zeros(like.shape, dtype=np.float32)
    certain[np.arange(split.num_words), split.labels] = 1.0
    return certain


def _marks(split: TokenizedSplit, gold: Any, said: Any, scores: Array) -> Marks:
    if _are_entities(gold, said):
        return mark_entities(split, gold, said, scores)
    if isinstance(said[0][0], SpanAnswer | NoAnswer):
        return mark_answers(split, [own for (own,) in said])
    return mark_labels(split, [own for (own,) in gold], [own for (own,) in said])


def _are_entities(*answers: Sequence[tuple[Answer, ...]]) -> bool:
    """Rows without one answer each are sentences with entities."""
    return any(len(own) != 1 or isinstance(own[0], Entity) for each in answers for own in each)
