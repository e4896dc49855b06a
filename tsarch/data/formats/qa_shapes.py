"""Questions that stand below their passages, as in SQuAD's own files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tsarch.data.formats.shapes import Item, Raw, Shape
from tsarch.data.rows import Place, shown


def _is_squad(raw: Raw, names: Mapping[str, str]) -> bool:
    return isinstance(raw.get("paragraphs"), list) or isinstance(raw.get("qas"), list)


def _rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    if "header" in item.raw and len(item.raw) == 1:
        return  # MRQA's first line
    paragraphs = item.raw.get("paragraphs", [item.raw])
    for number, paragraph in enumerate(paragraphs if isinstance(paragraphs, list) else [], 1):
        if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
            what = f"has no list `qas` in paragraph {number}: {shown(paragraph)}."
            item.findings.mistake(item.place, what)
            continue
        for question in paragraph["qas"]:
            if isinstance(question, dict):
                yield item.place, _row(item, paragraph, question)
            else:
                item.findings.mistake(item.place, f"has no question in {shown(question)}.")


def _row(item: Item, paragraph: Raw, question: Raw) -> Raw:
    answers: Any = None
    if item.labelled:
        answers = _detected(question) if "detected_answers" in question else question.get("answers")
        if question.get("is_impossible") is True:
            answers = []
    own_id = question.get("id", question.get("qid"))
    return item.row(
        id=own_id, context=paragraph.get("context"), question=question.get("question"),
        answers=answers,
    )  # fmt: skip


def _detected(question: Raw) -> list[Raw]:
    """Answers as MRQA has them."""
    return [
        {"text": own.get("text"), "answer_start": own["char_spans"][0][0]}
        for own in question["detected_answers"]
        if own.get("char_spans")
    ]


QA_SHAPES = (Shape("squad", "SQuAD's nested file", _is_squad, _rows),)
