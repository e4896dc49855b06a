"""JSON Lines, and one JSON document that holds all rows."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tsarch.data.formats.findings import Findings, Found
from tsarch.data.rows import Place, shown
from tsarch.errors import UserError

_LISTS = ("data", "rows", "examples", "instances", "items", "documents", "dialogues", "records")
"""Keys under which a document may keep its rows."""
_GAP = re.compile(r"[ \t\r\n]*")


def json_rows(
    path: str,
    text: str,
    broken: set[int],
    needed: Sequence[str],
    kind: str | None,
    findings: Findings,
) -> Found:
    """Rows of a file.

    Args:
        broken: lines that were not text.
        needed: columns that every row has, so that a row is not taken for a document of rows.
        kind: `json`: one document; `jsonl`: an object a line; None: whichever it is.
    """
    if kind != "jsonl" and (kind == "json" or _is_document(text, needed)):
        findings.note("read as one JSON document")
        yield from _document_rows(path, text, needed, findings)
    else:
        yield from _line_rows(path, text, broken, findings)


def _is_document(text: str, needed: Sequence[str]) -> bool:
    """Whether the text as a whole, and not each of its lines, is JSON."""
    start = text.lstrip()
    if start[:1] not in ("[", "{"):
        return False
    first, _, others = start.partition("\n")
    value = _loaded(first)
    if value is None:
        return _loaded(text) is not None or _is_cut_array(start)
    if others.strip():
        return False
    if isinstance(value, dict):
        if len(value) > 1 and all(isinstance(own, dict) for own in value.values()):
            return True
        return not set(needed) <= set(value) and _held(value) is not None
    return isinstance(value, list) and all(isinstance(own, dict | list) for own in value)


def _is_cut_array(start: str) -> bool:
    """Whether a text that isn't whole begins as a list of objects does."""
    return re.match(r"\[\s*\{", start) is not None


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _line_rows(path: str, text: str, broken: set[int], findings: Findings) -> Found:
    for number, line in enumerate(text.split("\n"), 1):
        if number in broken or not line or line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            findings.mistake(f"{path}:{number}", f"is not JSON: {error}.")
            continue
        if isinstance(row, dict):
            yield Place(path, number), row
        else:
            hint = "JSON Lines has one object {…} a line."
            findings.mistake(f"{path}:{number}", "is not a JSON object.", hint)


def _document_rows(path: str, text: str, needed: Sequence[str], findings: Findings) -> Found:
    start = _GAP.match(text).end()  # type: ignore[union-attr]
    if text[start : start + 1] == "[":
        yield from _only_objects(_array_items(path, text, start), findings)
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError.single(path, f"is not one JSON document: {error}.") from None
    if not isinstance(value, dict):
        raise UserError.single(path, "is neither a list of rows nor an object that has one.")
    yield from _only_objects(_object_items(path, value, needed), findings)


def _array_items(path: str, text: str, start: int) -> Iterator[tuple[Place, Any]]:
    """Items of a list, each with the line where it begins; one at a time is held."""
    decoder = json.JSONDecoder()
    place, line, counted = start + 1, 1, 0
    for number in itertools.count(1):
        place = _GAP.match(text, place).end()  # type: ignore[union-attr]
        if text[place : place + 1] == "]":
            break
        line, counted = line + text.count("\n", counted, place), place
        try:
            item, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise UserError.single(f"{path}:{line}", f"is not JSON: {error}.") from None
        yield Place(path, line, part=(number,)), item
        place = _GAP.match(text, place).end()  # type: ignore[union-attr]
        if text[place : place + 1] == ",":
            place += 1
        elif text[place : place + 1] != "]":
            line += text.count("\n", counted, place)
            what = "is not JSON: after an item of the list comes neither `,` nor `]`."
            raise UserError.single(f"{path}:{line}", what)


def _held(value: Mapping[str, Any]) -> list[Any] | None:
    """The rows that an object keeps in a list; None: it has none such."""
    for name in _LISTS:
        own = value.get(name)
        if isinstance(own, list) and own and all(isinstance(item, dict) for item in own):
            return own
    return None


def _object_items(
    path: str, value: dict[str, Any], needed: Sequence[str]
) -> Iterator[tuple[Place, Any]]:
    """Rows of an object: in a list, by name, or by column as pandas writes them.

    Raises:
        UserError: it has none of these.
    """
    held = _held(value)
    if held is not None:
        for number, own in enumerate(held, 1):
            yield Place(path, number, unit="item "), own
    elif set(needed) <= set(value):
        yield from _by_column(path, value)
    elif len(value) > 0 and all(isinstance(own, dict) for own in value.values()):
        for number, (name, own) in enumerate(value.items(), 1):
            yield Place(path, number, unit="item "), {"id": name, **own}
    else:
        keys = shown(", ".join(value))
        hint = f"Rows are looked for in a list, or under one of {', '.join(_LISTS)}."
        raise UserError.single(path, f"is an object that holds no rows (keys: {keys}).", hint)


def _by_column(path: str, value: dict[str, Any]) -> Iterator[tuple[Place, Any]]:
    """One row, or all of them where each column is an object of its cells."""
    columns = {name: own for name, own in value.items() if isinstance(own, dict)}
    if len(columns) < len(value):
        yield Place(path, 1, unit="item "), value
        return
    for number, key in enumerate(dict.fromkeys(key for own in columns.values() for key in own), 1):
        row = {name: own[key] for name, own in columns.items() if key in own}
        yield Place(path, number, unit="item "), row


def _only_objects(items: Iterator[tuple[Place, Any]], findings: Findings) -> Found:
    for place, item in items:
        if isinstance(item, dict):
            yield place, item
        else:
            findings.mistake(place, "is not a JSON object.", "A list of rows has objects {…}.")
