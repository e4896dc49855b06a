"""Which texts and questions of long ones are measured."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.long_questions import measured, texts_of
from tsarch.tasks.answers import NoAnswer, SpanAnswer


@dataclass(frozen=True)
class Row:
    passage: str
    question: str
    answers: tuple[str, ...] = ("Rome",)


ROWS = [Row(f"passage {n // 2}", f"question {n}") for n in range(8)]


def test_every_question_is_asked_of_the_text_that_its_passage_is_in():
    texts = texts_of(ROWS, 2, most=100)
    assert [text for text, _ in texts] == ["passage 0\npassage 2", "passage 1\npassage 3"]
    assert all(row.passage in text for text, own in texts for row in own)
    assert sorted(row.question for _, own in texts for row in own) == [r.question for r in ROWS]


def test_no_more_questions_are_asked_than_wanted():
    assert [len(own) for _, own in texts_of(ROWS, 1, most=3)] == [2, 1]


def test_a_text_is_read_once_and_every_question_is_scored():
    read = []

    def reading(text):
        read.append(text)
        right = SpanAnswer(0, 4, "Rome", 1.0)
        return lambda question: right if question == "question 0" else NoAnswer(0.0)

    found = measured(texts_of(ROWS, 4, most=4), reading)
    assert len(read) == 1
    assert found.f1 == 0.25
