"""Rows of TACRED, DocRED and OpenNRE (FewRel, Wiki80), made into heads and tails by words."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tsarch.data.formats.shapes import Item, Raw, Shape, plain_columns
from tsarch.data.plain_text import word_bounds
from tsarch.data.rows import Place, check_unicode, shown

_NONE = "NA"
_TACRED = ("subj_start", "subj_end", "obj_start", "obj_end")


def _is_tacred(raw: Raw, names: Mapping[str, str]) -> bool:
    return all(type(raw.get(name)) is int for name in _TACRED)


def _tacred_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    raw = item.raw
    if not _is_tacred(raw, item.names):
        item.findings.mistake(item.place, f"has no whole numbers {', '.join(_TACRED)}.")
        return
    first, last, object_first, object_last = (raw[name] for name in _TACRED)
    yield (
        item.place,
        item.row(
            tokens=raw.get("token", raw.get("tokens")),
            head=[first, last + 1],  # theirs is the last word
            tail=[object_first, object_last + 1],
            relation=raw.get("relation"),
        ),
    )


def _is_opennre(raw: Raw, names: Mapping[str, str]) -> bool:
    return all(isinstance(raw.get(name), dict) and "pos" in raw[name] for name in ("h", "t"))


def _opennre_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    tokens = item.raw.get("token", item.raw.get("tokens"))
    spans = {}
    for name, own in (("head", "h"), ("tail", "t")):
        match item.raw.get(own):
            case {"pos": [int(start), int(stop)]}:
                spans[name] = [start, stop]
            case other:
                what = f"`{own}` is {shown(other)}, not an entity with `pos` [start, end)."
                item.findings.mistake(item.place, what)
                return
    if not isinstance(tokens, list):
        what = "has no list of words `token`; characters of a `text` aren't read."
        item.findings.mistake(item.place, what)
        return
    yield item.place, item.row(tokens=tokens, relation=item.raw.get("relation"), **spans)


def _is_listed(raw: Raw, names: Mapping[str, str]) -> bool:
    relations = raw.get("relations")
    return (
        names["head"] not in raw
        and isinstance(relations, list)
        and all(isinstance(own, dict) and {"head", "tail"} <= own.keys() for own in relations)
    )


def _listed_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    """A row for each pair of a document that is listed."""
    if not _is_listed(item.raw, item.names):
        item.findings.mistake(item.place, "has no list `relations` of {head, tail, relation}.")
        return
    tokens = item.raw.get(item.names["tokens"])
    if not item.raw["relations"]:
        item.findings.count("{} documents have no pairs, the first in {}", item.place)
    for own in item.raw["relations"]:
        relation = own.get("relation") if item.labelled else None
        row = item.row(tokens=tokens, head=own["head"], tail=own["tail"], relation=relation)
        yield item.place, row if item.labelled else {**plain_columns(own), **row}


def _is_docred(raw: Raw, names: Mapping[str, str]) -> bool:
    return isinstance(raw.get("vertexSet"), list) and isinstance(raw.get("sents"), list)


def _docred_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    """A row for each ordered pair of entities, at their first mentions; pairs without a relation
    are `NA`. A pair with several relations is a row for each."""
    try:
        tokens, spans = _document(item.raw)
        related = _related(item.raw) if item.labelled else {}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        what = f"isn't as DocRED has it (`sents`, `vertexSet`, `labels`): {error!r}."
        item.findings.mistake(item.place, what)
        return
    if item.labelled and "labels" not in item.raw:
        item.findings.mistake(item.place, "has no `labels`.", "DocRED's test.json has none.")
        return
    for head, tail in itertools.permutations(range(len(spans)), 2):
        relations = related.get((head, tail), [_NONE])
        if len(relations) > 1:
            note = "{} pairs have several relations, each in a row of its own, the first in {}"
            item.findings.count(note, item.place)
        for relation in relations:
            yield (
                item.place,
                item.row(
                    tokens=tokens,
                    head=list(spans[head]),
                    tail=list(spans[tail]),
                    relation=relation if item.labelled else None,
                ),
            )


def _document(raw: Raw) -> tuple[list[str], list[tuple[int, int]]]:
    """Words of all sentences, and the words [start, end) of each entity's first mention."""
    starts = [0, *itertools.accumulate(len(own) for own in raw["sents"])]
    spans = []
    for mentions in raw["vertexSet"]:
        places = []
        for own in mentions:
            start, stop = own["pos"]
            places.append((starts[own["sent_id"]] + start, starts[own["sent_id"]] + stop))
        spans.append(min(places))
    return [word for own in raw["sents"] for word in own], spans


def _related(raw: Raw) -> dict[tuple[int, int], list[Any]]:
    related: dict[tuple[int, int], list[Any]] = {}
    labels = raw.get("labels", [])
    if isinstance(labels, dict):  # as the hub has them, by column
        names = labels.get("relation_text") or labels["relation_id"]
        triples = list(zip(labels["head"], labels["tail"], names, strict=True))
    else:
        triples = [(label["h"], label["t"], label["r"]) for label in labels]
    for head, tail, name in triples:
        own = related.setdefault((head, tail), [])
        if name not in own:
            own.append(name)
    return related


# ---- entities marked in the text


_MARKS = (
    (r"<e1>(.+?)</e1>", r"<e2>(.+?)</e2>"),
    (r"\[E1\](.+?)\[/E1\]", r"\[E2\](.+?)\[/E2\]"),
    (r"<<(.+?)>>", r"\[\[(.+?)\]\]"),
)
"""Of the head and of the tail: SemEval's, those of BERT-like models, SciBERT's of ChemProt."""


def _marked(raw: Raw) -> tuple[str, re.Match[str], re.Match[str]] | None:
    text = next((raw[key] for key in ("text", "sentence") if isinstance(raw.get(key), str)), "")
    for marks in _MARKS:
        head, tail = (list(re.finditer(mark, text, re.DOTALL)) for mark in marks)
        if len(head) == 1 and len(tail) == 1:
            return text, head[0], tail[0]
    return None


def _is_marked(raw: Raw, names: Mapping[str, str]) -> bool:
    return names["tokens"] not in raw and _marked(raw) is not None


def _marked_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    found = _marked(item.raw)
    if found is None:
        what = "has no text with one head and one tail marked, as <e1>…</e1> and <e2>…</e2>."
        item.findings.mistake(item.place, what)
        return
    text, *marked = found
    if wrong := check_unicode(item.place, text):
        item.findings.mistakes.append(wrong)
        return
    tokens: list[str] = []
    spans: dict[int, list[int]] = {}
    place = 0
    for number, own in sorted(enumerate(marked), key=lambda pair: pair[1].start()):
        tokens += _words(text[place : own.start()])
        inside = _words(own[1])
        spans[number] = [len(tokens), len(tokens) + len(inside)]
        tokens += inside
        place = own.end()
    tokens += _words(text[place:])
    name = item.names["relation"]
    relation = item.raw.get(name, item.raw.get("label")) if item.labelled else None
    yield item.place, item.row(tokens=tokens, head=spans[0], tail=spans[1], relation=relation)


def _words(text: str) -> list[str]:
    return [text[start:stop] for start, stop in word_bounds(text).tolist()]


RELATION_SHAPES = (
    Shape("marked", "texts with a marked head and tail", _is_marked, _marked_rows),
    Shape("tacred", "TACRED's rows (ends are the last word)", _is_tacred, _tacred_rows),
    Shape("docred", "DocRED's documents, a row a pair of entities", _is_docred, _docred_rows),
    Shape("pairs", "documents with a list of pairs, a row each", _is_listed, _listed_rows),
    Shape("opennre", "OpenNRE's rows", _is_opennre, _opennre_rows),
)
