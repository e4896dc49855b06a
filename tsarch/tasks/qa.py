"""Extractive question answering: the span of a passage that answers a question, or none."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tsarch.config import ColumnsConfig, DataConfig
from tsarch.data.passages import Passage, Question
from tsarch.data.rows import (
    Layout,
    Place,
    Row,
    RowOrMistakes,
    check_text,
    check_unicode,
    found,
    from_json,
    no_column,
)
from tsarch.errors import Mistake
from tsarch.losses.objective import Objective
from tsarch.losses.spans import SpanObjective
from tsarch.records import Array, FloatArray, IntArray, TokenizedSplit
from tsarch.tasks.base import Metrics, WindowChoice
from tsarch.tasks.chinese import is_chinese
from tsarch.tasks.collect import Collector, span_collector
from tsarch.tasks.span_search import SpanWindows, best_spans, question_logits
from tsarch.tasks.squad import Score, score_answer

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

ANSWER, NO_ANSWER = "answer", "no_answer"


class QaRows:
    """`id`, `context`, `question`, `answers` {`text`, `answer_start`}: SQuAD's rows."""

    layout: Layout = "passages"

    def needed(self, columns: ColumnsConfig) -> tuple[str, ...]:
        """All four."""
        return columns.id, columns.context, columns.question, columns.answers

    def word_lists(self, columns: ColumnsConfig) -> tuple[str, ...]:
        """None."""
        return ()

    def label_column(self, columns: ColumnsConfig) -> str:
        """The answers."""
        return columns.answers

    def read(self, place: Place, raw: dict[str, Any], data: DataConfig) -> RowOrMistakes:
        """Answers must stand in the passage where they say."""
        columns = data.columns
        mistakes = found(
            _check_id(place, raw, columns.id),
            check_text(place, raw, columns.context),
            check_text(place, raw, columns.question),
        )
        answers = _answers(place, raw, columns.answers, mistakes)
        if mistakes:
            return None, mistakes
        own_id, text = str(raw[columns.id]), raw[columns.context]
        if mistakes := found(check_unicode(place, own_id, text, raw[columns.question])):
            return None, mistakes
        words = word_bounds(text)
        spans = [_span(place, text, words, *answer, mistakes) for answer in answers]
        if mistakes:
            return None, mistakes
        question = [raw[columns.question][a:b] for a, b in word_bounds(raw[columns.question])]
        passage = Passage(
            text,
            tuple(answer for answer, _ in answers),
            len(question),
            words,
            tuple(span for span in spans if span is not None),
        )
        return Row(
            place,
            own_id,
            None,
            question + [text[a:b] for a, b in words],
            [ANSWER if answers else NO_ANSWER],
            unique_id=own_id,
            details=passage,
        ), []

    def label_names(self, row: Row) -> Iterable[tuple[str, str]]:
        """Whether there is an answer."""
        yield row.tags[0], str(row.place)

    def labels(self, names: Iterable[str]) -> tuple[str, ...]:
        """Whether questions have answers, as in the training split."""
        return tuple(names)


class QaTask:
    """Answers as spans, scored by exact match and F1.

    Args:
        labels: with `no_answer`, the model may leave a question without an answer: where no span is
            more likely than none.
    """

    objective: Objective = SpanObjective()
    main_metric = "f1"
    lower_is_better = False
    table_metrics: tuple[str, ...] = ("exact_match", "f1")
    window_choice: WindowChoice | None = SpanWindows()

    def __init__(self, labels: Sequence[str]) -> None:
        self._may_be_none = NO_ANSWER in labels

    def collector(self, joint_weights: Sequence[float]) -> Collector:
        """Logits of start and end; `joint` comes later (`SpanWindows.complete`)."""
        return span_collector()

    def metrics(self, split: TokenizedSplit, predicted: Array) -> Metrics:
        """Exact match and F1; if the split has questions without an answer, also of both kinds
        apart, and the share of questions left without one."""
        texts = self.answers(split, predicted)
        passages = [question.passage for question in split.rows]
        scores = [
            score_answer(text, passage.answers, is_chinese(passage.text))
            for text, passage in zip(texts, passages, strict=True)
        ]
        metrics = _means(scores, "")
        if all(passage.answers for passage in passages):
            return metrics
        for prefix, wanted in (("has_answer_", True), ("no_answer_", False)):
            pairs = zip(scores, passages, strict=True)
            own = [score for score, passage in pairs if bool(passage.answers) == wanted]
            metrics |= _means(own, prefix) if own else {}
        metrics["no_answer_share"] = sum(not text for text in texts) / len(texts)
        return metrics

    def answers(self, split: TokenizedSplit, predicted: Array) -> list[str]:
        """Text of every question's answer, "" for none, from (num_words, 2) logits."""
        parts = question_logits(split, predicted)
        return [self._answer(*pair) for pair in zip(split.rows, parts, strict=True)]

    def _answer(self, question: Question, logits: FloatArray) -> str:
        spans = best_spans(question, logits, 1)
        if not spans or (self._may_be_none and spans[0].score <= 0):
            return ""
        _, piece, first, last = spans[0]
        start = question.pieces[piece].first
        passage = question.passage
        return passage.text[passage.words[start + first, 0] : passage.words[start + last, 1]]


def word_bounds(text: str) -> IntArray:
    """(words, 2) characters [start, stop) of a text's words: runs between spaces, cut at
    punctuation; a Chinese character is a word."""
    bounds = [bounds for _, bounds in _splitter().pre_tokenize_str(text)]
    return np.array(bounds, dtype=np.int64).reshape(-1, 2)


@lru_cache(maxsize=1)
def _splitter() -> PreTokenizer:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import BertPreTokenizer, Sequence, Split

    chinese = Split(Regex(r"\p{Han}"), "isolated")
    splitter: PreTokenizer = Sequence([chinese, BertPreTokenizer()])
    return splitter


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
    place: Place, text: str, words: IntArray, answer: str, start: int, mistakes: list[Mistake]
) -> tuple[int, int] | None:
    """First and last word of an answer; a word that it has only a part of counts as a whole."""
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
    inside = np.flatnonzero((words[:, 0] < stop) & (words[:, 1] > start))
    if not len(inside):
        what = f"answer {reprlib.repr(answer)} at {start} has no word of the passage."
        mistakes.append(Mistake(str(place), what))
        return None
    return int(inside[0]), int(inside[-1])


ROWS, TASK = QaRows, QaTask
