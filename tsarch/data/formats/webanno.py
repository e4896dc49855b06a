"""WebAnno's and INCEpTION's TSV 3: a word a line with its place, a column for each feature."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tsarch.data.formats.findings import Findings, Found
from tsarch.data.formats.text import Text
from tsarch.data.rows import Place
from tsarch.errors import UserError

START = "#FORMAT=WebAnno TSV 3"
_WORD = re.compile(r"\d+-\d+")
_PART = re.compile(r"\d+-\d+\.\d+")
_VALUE = re.compile(r"(.*?)(?:\[(\d+)\])?")
_FIRST_FEATURE = 3
"""Columns before: the word's number, its characters, the word."""


def webanno_rows(
    path: str, text: Text, names: Mapping[str, str], findings: Findings, labelled: bool = True
) -> Found:
    """A row for each sentence; the file is read as a whole.

    Raises:
        UserError: it can't be told which column has the entities.
    """
    whole = text.whole(path, "Export its documents one by one.")
    lines = [line.rstrip("\r") for line in whole.split("\n")]
    column = _entity_column(path, lines, names["tags"]) if labelled else _FIRST_FEATURE - 1
    shown = f", entities in column {column + 1}" if labelled else ""
    findings.note(f"read as WebAnno's TSV{shown}")
    words: list[list[str]] = []
    first = Place(path, 1)
    for number, line in enumerate([*lines, ""], 1):
        cells = line.split("\t")
        place = Place(path, number)
        if _WORD.fullmatch(cells[0]) and len(cells) > column:
            first = first if words else place
            words.append(cells)
        elif (
            labelled
            and _PART.fullmatch(cells[0])
            and cells[column : column + 1] not in (["_"], [""], [])
        ):
            findings.count("{} entities of parts of words are left out, the first in {}", place)
        elif not line and words:
            row: dict[str, Any] = {names["tokens"]: [own[2] for own in words]}
            if labelled:
                tags = _tags([own[column] for own in words], first, findings)
                row[names["tags"]] = tags
            yield first, {**row, names["doc_id"]: path}
            words = []


def _entity_column(path: str, lines: Sequence[str], wanted: str) -> int:
    """The column of the entities, from 0: the feature `value` of the named entities, or the one
    that there is."""
    if wanted.isdecimal():
        return int(wanted) - 1
    found: dict[str, int] = {}
    place = _FIRST_FEATURE
    for line in lines:
        if line.startswith(("#T_SP=", "#T_CH=", "#T_RL=")):
            layer, *features = line.partition("=")[2].split("|")
            for own in features:
                if line.startswith("#T_SP="):
                    found[f"{layer.rpartition('.')[2]}|{own}"] = place
                place += 1
        elif line and not line.startswith("#"):
            break
    named = found.get("NamedEntity|value")
    if named is not None:
        return named
    if len(found) == 1:
        return next(iter(found.values()))
    shown = ", ".join(f"{place + 1} ({own})" for own, place in found.items()) or "none"
    what = f"has no named entities' value among its features: {shown}."
    raise UserError.single(path, what, "Number the column that is meant: data.columns.tags=4.")


def _tags(values: Sequence[str], place: Place, findings: Findings) -> list[str]:
    return list(_each_tag(values, place, findings))


def _each_tag(values: Sequence[str], place: Place, findings: Findings) -> Iterator[str]:
    """`PER` is an entity of one word, `PER[3]` a part of the third; IOB2."""
    before: tuple[str, str | None] | None = None
    for value in values:
        if value in ("_", ""):
            before = None
            yield "O"
            continue
        first, *others = re.split(r"(?<!\\)\|", value)
        if others:
            findings.count("{} words have several entities, of which the first is read: {}", place)
        match = _VALUE.fullmatch(first)
        assert match is not None, "it matches everything"
        kind, number = re.sub(r"\\(.)", r"\1", match[1]), match[2]
        goes_on = number is not None and before == (kind, number)
        before = (kind, number)
        yield f"{'I' if goes_on else 'B'}-{kind}"
