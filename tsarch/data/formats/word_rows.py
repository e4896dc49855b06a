"""Tables with a word a row: rows of a sentence become one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tsarch.data.formats.findings import Findings, Found
from tsarch.data.rows import Place, is_absent

_LOOKED_AT = 1000


def with_sentences(found: Found, names: dict[str, str], findings: Findings) -> Found:
    """The rows as they are, or the sentences of words that they are.

    A row is a word where all of the first have one word with one tag, and the column of the
    sentence is empty after the first row of a sentence, or the same in all of them.

    Args:
        names: the task's own name of a column → its name.
    """
    if "tags" not in names:
        yield from found
        return
    start = list(itertools.islice(found, _LOOKED_AT))
    rows = itertools.chain(start, found)
    if _are_words([row for _, row in start], names):
        findings.note(f"read as a word a row, sentences by `{names['sent_id']}`")
        yield from _grouped(rows, names)
    else:
        yield from rows


def _are_words(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> bool:
    if len(rows) < 2 or names["sent_id"] not in rows[0]:
        return False
    for row in rows:
        if any(
            _only(row.get(names[own])) is None for own in ("tokens", "tags") if names[own] in row
        ):
            return False
    keys = [_key(row, names) for row in rows]
    return any(own is None or own == before for before, own in itertools.pairwise(keys))


def _only(value: Any) -> str | None:
    """The one word of a cell."""
    if isinstance(value, str):
        return value
    return value[0] if isinstance(value, list) and len(value) == 1 else None


def _key(row: dict[str, Any], names: dict[str, str]) -> tuple[str, str] | None:
    """Document and sentence of a word; None: those of the word before."""
    sentence = row.get(names["sent_id"])
    if is_absent(sentence):
        return None
    document = row.get(names["doc_id"])
    return "" if is_absent(document) else str(document), str(sentence)


def _grouped(rows: Found, names: dict[str, str]) -> Found:
    kept: list[tuple[Place, dict[str, Any]]] = []
    known: tuple[str, str] | None = None
    for place, row in rows:
        key = _key(row, names)
        if kept and key is not None and key != known:
            yield _sentence(kept, names)
            kept = []
        known = key or known
        kept.append((place, row))
    if kept:
        yield _sentence(kept, names)


def _sentence(
    rows: Sequence[tuple[Place, dict[str, Any]]], names: dict[str, str]
) -> tuple[Place, dict[str, Any]]:
    place, first = rows[0]
    sentence = dict(first)
    for own in ("tokens", "tags"):
        if names[own] in first:
            sentence[names[own]] = list(_words(row.get(names[own]) for _, row in rows))
    return replace(place, line_per_word=True), sentence


def _words(values: Iterator[Any]) -> Iterator[Any]:
    for value in values:
        word = _only(value)
        yield value if word is None else word
