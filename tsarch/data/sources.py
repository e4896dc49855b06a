"""Raw rows of a file or a hub data set, each with its place, so that mistakes can name it.

Which reader of `formats/` takes a file says `data.format`, or the file itself: its ending, and what
it begins with.
"""

from __future__ import annotations

import os
from typing import Any

from tsarch.config import DataConfig
from tsarch.data.formats.conll import conll_rows
from tsarch.data.formats.delimited import delimited_rows
from tsarch.data.formats.findings import Findings, Found
from tsarch.data.formats.guess import text_kind
from tsarch.data.formats.json_files import json_rows
from tsarch.data.formats.opening import decoded, inner_name, read_content
from tsarch.data.formats.tables import parquet_rows
from tsarch.data.formats.word_rows import with_sentences
from tsarch.data.row_reader import RowReader
from tsarch.errors import UserError

_FORMATS = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson", ".jsonlines"), "json"),
    **dict.fromkeys((".conll", ".conllu", ".iob", ".iob2", ".bio", ".txt"), "conll"),
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    ".parquet": "parquet",
}
_PARQUET = b"PAR1"


def file_rows(
    path: str | None, key: str, data: DataConfig, reader: RowReader[Any], findings: Findings
) -> Found:
    """Rows of a file that the config's `key` names; broken lines go to the mistakes.

    Raises:
        UserError: the file as a whole can't be read.
    """
    if path is None:
        raise UserError.single(key, "is missing.")
    where = f"{key}: {path}"
    content = read_content(path, where)
    kind = _kind(path, content, data, findings)
    if kind == "parquet":
        yield from parquet_rows(path, data, reader)
        return
    text, broken = decoded(content, path, where, data.encoding, findings)
    if kind is None:
        hint = text_kind(text) or "Set data.format to jsonl, json, conll, csv or parquet."
        raise UserError.single(path, "has an ending that names no known format.", hint)
    findings.guess = lambda: text_kind(text, kind)
    found = _text_rows(kind, path, text, broken, data, reader, findings)
    sound = (own for own in found if own[0].number not in broken)
    yield from with_sentences(sound, _names(reader), findings)


def _kind(path: str, content: bytes, data: DataConfig, findings: Findings) -> str | None:
    if data.format != "auto":
        return data.format
    kind = _FORMATS.get(os.path.splitext(inner_name(path))[1].lower())
    if content.startswith(_PARQUET) and b"\x00" in content[:4096]:
        if kind != "parquet":
            findings.note("read as Parquet, which it is")
        return "parquet"
    return kind


def _text_rows(
    kind: str,
    path: str,
    text: str,
    broken: set[int],
    data: DataConfig,
    reader: RowReader[Any],
    findings: Findings,
) -> Found:
    names = _names(reader)
    if kind == "conll" and "tags" in names:
        return conll_rows(path, text, names, data.delimiter, findings)
    if kind in ("conll", "csv"):
        return delimited_rows(path, text, data, reader, findings)
    kinds = {"json": None if data.format == "auto" else "json", "jsonl": "jsonl"}
    return json_rows(path, text, broken, reader.needed, kinds[kind], findings)


def _names(reader: RowReader[Any]) -> dict[str, str]:
    """The task's own name of each column → its name."""
    return {name: str(value) for name, value in reader.columns.model_dump().items()}
