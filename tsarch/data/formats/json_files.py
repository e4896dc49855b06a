"""JSON Lines, and one JSON document that holds all rows."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tsarch.data.formats.findings import Findings, Found
from tsarch.data.formats.text import Text
from tsarch.data.rows import Place, shown
from tsarch.errors import UserError

_LISTS = ("data", "rows", "examples", "instances", "items", "documents", "dialogues", "records")
"""Keys under which a document may keep its rows."""
_SPACES = " \t\r\n"
_MOST_OF_AN_ITEM = 2**28
"""Characters after which an item of a list that still isn't whole is taken for broken."""
_GAP = re.compile(f"[{_SPACES}]*")


def json_rows(
    path: str,
    text: Text,
    needed: Sequence[str],
    kind: str | None,
    findings: Findings,
    only_predicted: bool = False,
) -> Found:
    """Rows of a file.

    Args:
        needed: columns that every row has, so that a row is not taken for a document of rows.
        only_predicted: a line, or an item of a list, may be a string (a row with a `text` alone),
            and each line that is no sound text is a mistake of its own.
        kind: `json`: one document; `jsonl`: an object a line; None: whichever it is.
    """
    if kind != "jsonl" and (kind == "json" or _is_document(text, needed)):
        findings.note("read as one JSON document")
        yield from _only_objects(_document_rows(path, text, needed), findings, only_predicted)
    else:
        yield from _line_rows(path, text, findings, only_predicted)


def _is_document(text: Text, needed: Sequence[str]) -> bool:
    """Whether the text as a whole, and not each of its lines, is JSON."""
    start = text.start.lstrip()
    if start[:1] not in ("[", "{"):
        return False
    first, _, others = start.partition("\n")
    value = _loaded(first)
    if value is None:
        whole = text.is_whole and _loaded(text.start) is not None
        return whole or _is_cut(start, text.is_whole)
    if others.strip():
        return False
    if isinstance(value, dict):
        if len(value) > 1 and all(isinstance(own, dict) for own in value.values()):
            return True
        return not set(needed) <= set(value) and _held(value) is not None
    return isinstance(value, list) and all(isinstance(own, dict | list) for own in value)


def _is_cut(start: str, is_whole: bool) -> bool:
    """Whether a text that isn't whole, or not all known, begins as a document does."""
    if not is_whole and re.match(r"\{\s*\n\s*\"|\[\s*\"", start):
        return True
    return re.match(r"\[\s*\{", start) is not None


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _line_rows(path: str, text: Text, findings: Findings, only_predicted: bool) -> Found:
    for number, line in enumerate(text.lines(), 1):
        if not line or line.isspace():
            continue
        if number in text.broken:
            if only_predicted:
                findings.mistake(f"{path}:{number}", "is not UTF-8 text.")
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            findings.mistake(f"{path}:{number}", f"is not JSON: {error}.")
            continue
        if only_predicted and isinstance(row, str):
            row = {"text": row}
        if isinstance(row, dict):
            yield Place(path, number), row
        else:
            hint = "JSON Lines has one object {…} a line."
            findings.mistake(f"{path}:{number}", "is not a JSON object.", hint)


def _document_rows(path: str, text: Text, needed: Sequence[str]) -> Iterator[tuple[Place, Any]]:
    if text.start.lstrip(_SPACES)[:1] == "[":
        yield from _Items(path, text)
        return
    hint = "Write its rows as JSON Lines, one a line: `jq -c '.data[]' FILE > NEW.jsonl`."
    try:
        value = json.loads(text.whole(path, hint))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError.single(path, f"is not one JSON document: {error}.") from None
    if not isinstance(value, dict):
        raise UserError.single(path, "is neither a list of rows nor an object that has one.")
    yield from _object_items(path, value, needed)


class _Items:
    """The items of a list, each with the line where it begins; of the text is held what one item
    needs."""

    def __init__(self, path: str, text: Text) -> None:
        self._path = path
        self._text = text
        self._parts = text.parts()
        self._held = next(self._parts, "")
        self._place = self._line_from = 0
        self._line = 1
        self._decoder = json.JSONDecoder()

    def __iter__(self) -> Iterator[tuple[Place, Any]]:
        self._next_character()
        self._place += 1
        for number in itertools.count(1):
            if self._next_character() == "]":
                return
            line = self._line_here()
            item = self._item(line)
            yield Place(self._path, line, part=(number,)), item
            mark = self._next_character()
            if mark == ",":
                self._place += 1
            elif mark != "]":
                what = "is not JSON: after an item of the list comes neither `,` nor `]`."
                raise UserError.single(f"{self._path}:{self._line_here()}", what)

    def _next_character(self) -> str:
        """What comes after spaces."""
        while True:
            self._place = _GAP.match(self._held, self._place).end()  # type: ignore[union-attr]
            if self._place < len(self._held) or not self._more():
                return self._held[self._place : self._place + 1]

    def _line_here(self) -> int:
        self._line += self._held.count("\n", self._line_from, self._place)
        self._line_from = self._place
        return self._line

    def _item(self, line: int) -> Any:
        while True:
            try:
                item, stop = self._decoder.raw_decode(self._held, self._place)
                if stop < len(self._held) or not self._more():  # else a number may go on
                    self._place = stop
                    return item
            except (ValueError, RecursionError) as error:
                rest = len(self._held) - self._place
                if rest > _MOST_OF_AN_ITEM or not self._more(rest):
                    what = f"is not JSON: {error}."
                    raise UserError.single(f"{self._path}:{line}", what) from None

    def _more(self, wanted: int = 1) -> bool:
        """Hold so much more of the text; what was used is let go. Whether there is more."""
        parts = []
        while wanted > 0 and (part := next(self._parts, "")):
            self._text.took(len(part))
            parts.append(part)
            wanted -= len(part)
        if parts:
            self._line_here()
            self._held = "".join((self._held[self._place :], *parts))
            self._place = self._line_from = 0
        return bool(parts)


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


def _only_objects(
    items: Iterator[tuple[Place, Any]], findings: Findings, only_predicted: bool
) -> Found:
    for place, item in items:
        if only_predicted and isinstance(item, str):
            item = {"text": item}
        if isinstance(item, dict):
            yield place, item
        else:
            findings.mistake(place, "is not a JSON object.", "A list of rows has objects {…}.")
