"""Rows of a query with all of its candidates, made into a row for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tsarch.data.formats.shapes import Item, Raw, Shape
from tsarch.data.rows import Place, from_json, shown

_POSITIVE = ("positive", "positives", "pos", "positive_passages")
_NEGATIVE = ("negative", "negatives", "neg", "negative_passages", "hard_negatives")


def _is_candidates(raw: Raw, names: Mapping[str, str]) -> bool:
    return isinstance(from_json(raw.get("passages")), list | dict)


def _candidate_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    """Lists `passages` and `relevance`; MS MARCO has both in `passages`."""
    raw = item.raw
    passages, grades = from_json(raw.get("passages")), from_json(raw.get("relevance"))
    if isinstance(passages, dict):
        grades, passages = passages.get("is_selected"), passages.get("passage_text")
    if not isinstance(passages, list):
        item.findings.mistake(item.place, f"`passages` is {shown(passages)}, not a list of texts.")
        return
    if item.labelled and (not isinstance(grades, list) or len(grades) != len(passages)):
        what = (
            f"`relevance` is {shown(grades)}, not a list of {len(passages)} numbers, one a passage."
        )
        item.findings.mistake(item.place, what)
        return
    yield from _rows(item, zip(passages, grades or [None] * len(passages), strict=False))


def _is_positives(raw: Raw, names: Mapping[str, str]) -> bool:
    return any(name in raw for name in _POSITIVE) and any(name in raw for name in _NEGATIVE)


def _positive_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    found: list[tuple[Any, int]] = []
    for names, grade in ((_POSITIVE, 1), (_NEGATIVE, 0)):
        for own in (from_json(item.raw[name]) for name in names if name in item.raw):
            found += [(each, grade) for each in (own if isinstance(own, list) else [own])]
    yield from _rows(item, found)


def _rows(item: Item, candidates: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Place, Raw]]:
    query_id = item.raw.get(item.names["query_id"], item.place.name)
    for passage, grade in candidates:
        text = passage.get("text") if isinstance(passage, dict) else passage
        own = item.row(
            query=item.raw.get(item.names["query"]),
            passage=text,
            query_id=query_id,
            relevance=grade if item.labelled else None,
        )
        yield item.place, own


RANKING_SHAPES = (
    Shape("candidates", "queries with lists of passages", _is_candidates, _candidate_rows),
    Shape(
        "positives", "queries with positive and negative passages", _is_positives, _positive_rows
    ),
)
