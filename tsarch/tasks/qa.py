"""Extractive question answering: the span of a passage that answers a question, or none."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tsarch.config import Columns, DataConfig, Query, TaskConfig
from tsarch.data.formats.qa_shapes import QA_SHAPES
from tsarch.data.formats.shapes import Shape
from tsarch.data.layouts import Layout, PackingSpec, QuestionLayout
from tsarch.data.passages import CharSpan, Question
from tsarch.data.row_reader import PlainSplits
from tsarch.data.rows import Origin, Place, check_text, check_unicode, found, from_json, no_column
from tsarch.errors import Mistake
from tsarch.records import (
    SPAN_END,
    SPAN_START,
    Array,
    FloatArray,
    Piece,
    TokenizedSplit,
)
from tsarch.tasks.answers import NoAnswer, SpanAnswer
from tsarch.tasks.base import Metrics, WindowChoice
from tsarch.tasks.scripts import writing
from tsarch.tasks.span_search import SpanWindows, best_spans, question_logits
from tsarch.tasks.squad import Score, score_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tsarch.losses.objective import Objective
    from tsarch.tasks.collect import Collector

ANSWER, NO_ANSWER = "answer", "no_answer"


class QaColumns(Columns):
    """Columns of `qa`."""

    id: str = "id"
    """Column with the question's id."""
    context: str = "context"
    """Column with the passage (a string)."""
    question: str = "question"
    """Column with the question (a string)."""
    answers: str = "answers"
    """Column with `{text: [...], answer_start: [...]}`, or a list of `{text, answer_start}`, places
    in characters; empty lists: the passage has no answer."""


class QaReader(PlainSplits):
    """`id`, `context`, `question`, `answers` {`text`, `answer_start`}: SQuAD's rows."""

    shapes: tuple[Shape, ...] = QA_SHAPES

    def __init__(self, data: DataConfig, labelled: bool = True) -> None:
        self.columns = QaColumns(**data.columns)
        self._labelled = labelled

    @property
    def needed(self) -> tuple[str, ...]:
        """All four."""
        columns = self.columns
        own = columns.id, columns.context, columns.question
        return (*own, columns.answers) if self._labelled else own

    @property
    def optional(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def word_lists(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def label_column(self) -> str:
        """The answers."""
        return self.columns.answers

    def read(self, place: Place, raw: dict[str, Any]) -> tuple[Question | None, list[Mistake]]:
        """Answers must stand in the passage where they say."""
        columns = self.columns
        mistakes = found(
            _check_id(place, raw, columns.id),
            check_text(place, raw, columns.context),
            check_text(place, raw, columns.question),
        )
        answers = _answers(place, raw, columns.answers, mistakes) if self._labelled else []
        if mistakes:
            return None, mistakes
        own_id, passage, question = (
            str(raw[columns.id]),
            raw[columns.context],
            raw[columns.question],
        )
        if mistakes := found(check_unicode(place, own_id, passage, question)):
            return None, mistakes
        spans = [_span(place, passage, *answer, mistakes) for answer in answers]
        if mistakes:
            return None, mistakes
        return Question(
            Origin(place, own_id, unique_id=own_id),
            question,
            passage,
            tuple(text for text, _ in answers) if self._labelled else None,
            tuple(span for span in spans if span is not None) if self._labelled else None,
        ), []

    def raw(self, row: Question) -> dict[str, Any]:
        """All four."""
        starts = [start for start, _ in row.spans or ()]
        return {
            "id": row.origin.unique_id,
            "context": row.passage,
            "question": row.question,
            "answers": {"text": list(row.answers or ()), "answer_start": starts},
        }

    def label_names(self, row: Question) -> Iterable[tuple[str, str]]:
        """Whether there is an answer."""
        if row.answers is not None:
            yield ANSWER if row.answers else NO_ANSWER, str(row.origin.place)

    def labels(self, names: Iterable[str]) -> tuple[str, ...]:
        """Whether questions have answers, as in the training split."""
        return tuple(names)

    def nothing_to_learn(self, names: Sequence[str]) -> str:
        """No answer."""
        return "" if ANSWER in names or not self._labelled else "has no answer"

    def layout(self, spec: PackingSpec, labels: Sequence[str]) -> Layout[Question]:
        """Questions about passages."""
        return QuestionLayout(spec)


class QaTask:
    """Answers as spans, scored by exact match and F1.

    Args:
        labels: with `no_answer`, the model may leave a question without an answer: where no span is
            more likely than none.
    """

    main_metric = "f1"
    full_marks: Mapping[str, float] = {"exact_match": 1.0, "f1": 1.0}
    lower_is_better = False
    table_metrics: tuple[str, ...] = ("exact_match", "f1")
    window_choice: WindowChoice | None = SpanWindows()
    choices: tuple[str, ...] = ()

    def __init__(self, labels: Sequence[str], config: TaskConfig | None = None) -> None:
        self._may_be_none = NO_ANSWER in labels
        self.query: Query = "both" if config is None else config.query

    @property
    def objective(self) -> Objective:
        """Start and end of the answer."""
        from tsarch.losses.spans import SpanObjective

        return SpanObjective()

    def collector(self, joint_weights: Sequence[float]) -> Collector:
        """Logits of start and end; `joint` comes later (`SpanWindows.complete`)."""
        from tsarch.tasks.collect import span_collector

        return span_collector()

    def label_texts(
        self, label_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
    ) -> list[str]:
        """Of the words: `start` and `end` of the answer, `start+end` of an answer of one word."""
        bits = ((SPAN_START, "start"), (SPAN_END, "end"))
        return ["+".join(name for bit, name in bits if label & bit) for label in label_ids]

    def metrics(self, split: TokenizedSplit, predicted: Array) -> Metrics:
        """Exact match and F1; if the split has questions without an answer, also of both kinds
        apart, and the share of questions left without one."""
        split.check_labels("measuring answers")
        questions: Sequence[Question] = split.rows
        texts = self._texts(split, predicted)
        scores = _scores(questions, texts)
        metrics = _means(scores, "")
        if all(question.answers for question in questions):
            return metrics
        for prefix, wanted in (("has_answer_", True), ("no_answer_", False)):
            scored = zip(scores, questions, strict=True)
            own = [score for score, question in scored if bool(question.answers) == wanted]
            metrics |= _means(own, prefix) if own else {}
        metrics["no_answer_share"] = sum(not text for text in texts) / len(texts)
        return metrics

    def perfect(self, split: TokenizedSplit) -> FloatArray:
        """(num_words, 2) logits that only the true start and end have above 0."""
        bits = split.labels[:, None] & np.array([SPAN_START, SPAN_END])
        logits: FloatArray = np.where(bits > 0, 1.0, -1.0).astype(np.float32)
        return logits

    def missed(self, split: TokenizedSplit, predicted: Array) -> list[int]:
        """Questions whose answers aren't right to the letter."""
        scores = _scores(split.rows, self._texts(split, predicted))
        return [row for row, score in enumerate(scores) if score.exact < 1.0]

    def _texts(self, split: TokenizedSplit, predicted: Array) -> list[str]:
        """The answers; "": none."""
        answers = (answer for (answer,) in self.answers(split, predicted))
        return [answer.text if isinstance(answer, SpanAnswer) else "" for answer in answers]

    def lacks(self, split: TokenizedSplit) -> str:
        """Answers."""
        return "" if any(question.answers for question in split.rows) else "has no answer"

    def score_collector(self, joint_weight: float) -> Collector:
        """As `collector`: (num_words, 2) logits."""
        return self.collector([joint_weight])

    def decided(self, scores: FloatArray) -> FloatArray:
        """The logits themselves."""
        return scores

    def answers(
        self, split: TokenizedSplit, scores: FloatArray
    ) -> list[tuple[SpanAnswer | NoAnswer]]:
        """The answer to every question, from (num_words, 2) logits of start and end."""
        own = zip(split.rows, split.pieces, question_logits(split, scores), strict=True)
        return [(self._answer(*each),) for each in own]

    def _answer(
        self, question: Question, pieces: Sequence[Piece], logits: FloatArray
    ) -> SpanAnswer | NoAnswer:
        spans = best_spans(pieces, logits, 1)
        if not spans:
            return NoAnswer(-math.inf)
        score, piece, first, last = spans[0]
        if self._may_be_none and score <= 0:
            return NoAnswer(score)
        bounds = pieces[piece].bounds
        start, stop = int(bounds[first, 0]), int(bounds[last, 1])
        return SpanAnswer(start, stop, question.passage[start:stop], score)


_written = lru_cache(maxsize=10_000)(writing)


def _scores(questions: Sequence[Question], texts: Sequence[str]) -> list[Score]:
    return [
        score_answer(text, question.answers or (), _written(question.passage))
        for text, question in zip(texts, questions, strict=True)
    ]


def _means(scores: Sequence[Score], prefix: str) -> Metrics:
    """Sums divided as the scripts do."""
    return {
        f"{prefix}exact_match": sum(score.exact for score in scores) / len(scores),
        f"{prefix}f1": sum(score.f1 for score in scores) / len(scores),
    }


def _check_id(place: Place, raw: dict[str, Any], name: str) -> Mistake | None:
    if name not in raw:
        return no_column(str(place), name, raw)
    value = raw[name]
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        return Mistake(str(place), f"`{name}` is {reprlib.repr(value)}, not a string or a number.")
    return None


def _answers(
    place: Place, raw: dict[str, Any], name: str, mistakes: list[Mistake]
) -> list[tuple[str, int]]:
    """(text, start) of every answer; in CSV `answers` is JSON."""
    if name not in raw:
        mistakes.append(no_column(str(place), name, raw))
        return []
    value = from_json(raw[name])
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        value = [value]
    if isinstance(value, list) and all(isinstance(own, dict) for own in value):
        value = {name: [own.get(name) for own in value] for name in ("text", "answer_start")}
    match value:
        case {"text": list(texts), "answer_start": list(starts)} if len(texts) == len(starts):
            pairs = list(zip(texts, starts, strict=True))
        case _:
            what = f"`{name}` is {reprlib.repr(value)}, not {{text: [...], answer_start: [...]}}"
            mistakes.append(Mistake(str(place), f"{what} with equally long lists."))
            return []
    for number, (text, start) in enumerate(pairs, 1):
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            found = f"{reprlib.repr(text)} at {reprlib.repr(start)}"
            what = f"answer {number} is {found}, not a string and a whole number."
            mistakes.append(Mistake(str(place), what))
    return pairs


def _span(
    place: Place, text: str, answer: str, start: int, mistakes: list[Mistake]
) -> CharSpan | None:
    """Characters of an answer."""
    stop = start + len(answer)
    if not answer.strip():
        mistakes.append(Mistake(str(place), "has an empty answer."))
        return None
    if start < 0 or text[start:stop] != answer:
        shown = reprlib.repr(answer)
        found = text.find(answer)
        hint = f"It stands at {found}." if found >= 0 else "It stands nowhere in the passage."
        what = f"answer {shown} is not at answer_start {start} of the passage."
        mistakes.append(Mistake(str(place), what, hint))
        return None
    return start, stop


COLUMNS, READER, TASK = QaColumns, QaReader, QaTask
