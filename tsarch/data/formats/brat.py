"""BRAT's folders: a text file, and beside it an `.ann` file with its entities."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tsarch.data.formats.findings import Findings, Found
from tsarch.data.formats.opening import decoded, read_content
from tsarch.data.formats.shapes import Item
from tsarch.data.formats.span_text import Span, sentences
from tsarch.data.rows import Place
from tsarch.errors import UserError, one_line

_ENTITY = re.compile(r"(T\d+)\t(\S+) ([\d; ]+)(?:\t(.*))?")


def is_brat(path: str) -> bool:
    """Whether a folder, or a text file, has annotations of BRAT."""
    own = Path(path)
    if own.is_dir():
        return next(own.rglob("*.ann"), None) is not None
    return own.suffix == ".txt" and own.with_suffix(".ann").is_file()


def brat_rows(
    path: str,
    where: str,
    names: Mapping[str, str],
    labelled: bool,
    encoding: str | None,
    findings: Findings,
) -> Found:
    """Lines of all texts, each text a document."""
    folder = Path(path)
    texts = sorted(folder.rglob("*.txt")) if folder.is_dir() else [folder]
    if not texts:
        raise UserError.single(where, "has .ann files, but no .txt files beside them.")
    findings.note("read as BRAT's texts with .ann files")
    for file in texts:
        if not file.read_bytes().strip():
            continue
        content = read_content(str(file), where)
        text = decoded(content, str(file), where, encoding, findings).start
        doc_id = str(file.relative_to(folder).with_suffix("")) if folder.is_dir() else file.stem
        item = Item(Place(str(file), 1), {}, names, labelled, findings)
        spans = _entities(file.with_suffix(".ann"), item) if labelled else []
        yield from sentences(item, text, spans, doc_id)


def _entities(path: Path, item: Item) -> list[Span]:
    """Entities of an `.ann` file; relations, events and attributes aren't read."""
    if not path.is_file():
        item.findings.mistake(item.place.source, f"has no {path.name} beside it.")
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        item.findings.mistake(str(path), f"can't be read: {one_line(error)}.")
        return []
    spans = []
    for number, line in enumerate(lines, 1):
        if not line.startswith("T"):
            continue
        place = Place(str(path), number)
        match = _ENTITY.fullmatch(line.rstrip("\r"))
        if match is None:
            item.findings.mistake(place, "is no entity: T1, tab, TYPE START END, tab, its text.")
        elif ";" in match[3]:
            note = "{} entities of several pieces are left out, the first is {}"
            item.findings.count(note, place)
        else:
            start, stop = map(int, match[3].split())
            spans.append(Span(start, stop, match[2], match[4]))
    return spans
