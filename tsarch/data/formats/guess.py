"""What a file is that can't be read as it should: told from how it begins."""

from __future__ import annotations

import json
import re
from typing import Any

_BINARY = {
    b"PAR1": "it is Parquet. Set data.format: parquet.",
    b"ARROW1": "it is an Arrow file. Write it as Parquet: Dataset.to_parquet.",
    b"\x89HDF": "it is HDF5. Write it as JSON Lines or Parquet.",
    b"SQLite format 3": "it is an SQLite database. Write its table as CSV.",
    b"\xd0\xcf\x11\xe0": "it is an old Excel or Word file. Save it as CSV (UTF-8).",
    b"PK\x03\x04": "it is an Excel workbook or another Office file. Save it as CSV (UTF-8).",
    b"%PDF": "it is a PDF.",
    b"\x80\x04": "it is a Python pickle. Write it as JSON Lines.",
}
_JSON = {
    "jsonl": "It looks like JSON Lines: set data.format: jsonl.",
    "json": "It looks like one JSON document: set data.format: json.",
}
_TAG = re.compile(r"O|[BIESLUM]-.+")
_WIDE = 0.3
"""Share of zero bytes from which on a text is probably UTF-16."""


def binary_kind(content: bytes) -> str | None:
    """What a file is that is no text, and what to do about it; None: it may be text."""
    for magic, kind in _BINARY.items():
        if content.startswith(magic) and b"\x00" in content[:4096]:
            return kind
    start = content[:4096]
    if start.count(b"\x00") > _WIDE * len(start):
        order = "le" if start[1::2].count(b"\x00") >= start[::2].count(b"\x00") else "be"
        return f"it looks like UTF-16 without a byte order mark. Set data.encoding: utf-16-{order}."
    return None


def format_of(text: str, ending: str | None, is_tagged: bool) -> str | None:
    """The format of a text whose name says another, or none: JSON, or words with tags.

    Args:
        ending: the format that the name tells of.
        is_tagged: whether words with tags are looked for.
    """
    start = text[:20_000].lstrip()
    if ending in (None, "conll") and start.startswith(("[", "{")):
        return "json" if _json_kind(text, start) else ending
    if is_tagged and ending in (None, "csv") and _looks_like_conll(start):
        return "conll"
    return ending


def _looks_like_conll(start: str) -> bool:
    """Whether words stand below one another, most of them with a tag, sentences between blank
    lines."""
    lines = [line.rstrip("\r") for line in start.split("\n")[:-1]] or [start]
    words = [line for line in lines if line.strip() and not line.startswith("#")]
    tagged = sum(any(map(_TAG.fullmatch, re.split(r"[\t ]+", line)[1:])) for line in words)
    return len(words) < len(lines) and tagged > len(words) / 2


def text_kind(text: str, read_as: str = "") -> str | None:
    """What a text looks like that couldn't be read as `read_as`, and the key or command that reads
    it; None: like nothing known, or like that."""
    start = text[:20_000].lstrip()
    if start.startswith("version https://git-lfs"):
        return "It is a pointer of Git LFS, not the file: run `git lfs pull`."
    if re.match(r"<\?xml|<!doctype|<html|<tmx|<corpus|<doc|<refset|<srcset", start, re.IGNORECASE):
        return "It looks like XML or HTML, which isn't read: write it as JSON Lines."
    kind = _json_kind(text, start) if start.startswith(("[", "{")) else None
    if kind is not None:
        return None if read_as in ("json", kind) else _JSON[kind]
    if re.match(r"\{\s*\n\s+\"", start):
        return (
            "If objects stand over several lines, make a list of them: `jq -s . FILE > NEW.json`."
        )
    if read_as == "csv":
        blocks = start.count("\n\n") + start.count("\r\n\r\n")
        hint = "If words stand below one another, a sentence a block, set data.format: conll."
        return hint if blocks > 1 else None
    first = start.split("\n", 1)[0]
    for delimiter, name in (("\t", "\\t"), (";", ";"), ("|", "|")):
        if delimiter in first and read_as != "conll":
            return f'It looks like a table: set data.format: csv and data.delimiter: "{name}".'
    return "It looks like CSV: set data.format: csv." if "," in first else None


def _json_kind(text: str, start: str) -> str | None:
    if start[1:].lstrip()[:1] not in ('"', "{", "}", "[", "]"):
        return None
    if _is_json(start.split("\n", 1)[0]) and start.startswith("{"):
        return "jsonl"
    if _is_json(text):
        return "json"
    return None


def _is_json(text: str) -> bool:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list)
