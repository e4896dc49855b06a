"""Raw rows of a file or a hub data set, each with its place, so that mistakes can name it.

Which reader of `formats/` takes a file says `data.format`, or the file itself: its ending, and what
it begins with.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from tsarch.config import DataConfig
from tsarch.data.formats.brat import brat_rows, is_brat
from tsarch.data.formats.conll import conll_rows
from tsarch.data.formats.delimited import delimited_rows, is_table
from tsarch.data.formats.findings import Findings, Found
from tsarch.data.formats.guess import format_of, text_kind
from tsarch.data.formats.json_files import json_rows
from tsarch.data.formats.opening import (
    decoded,
    inner_name,
    opened,
    read_content,
    unpacking,
)
from tsarch.data.formats.parallel import parallel_rows
from tsarch.data.formats.shapes import with_nested, with_shape
from tsarch.data.formats.tables import parquet_rows
from tsarch.data.formats.text import Text, text_of
from tsarch.data.formats.webanno import START as WEBANNO
from tsarch.data.formats.webanno import webanno_rows
from tsarch.data.formats.word_rows import with_sentences
from tsarch.data.row_reader import RowReader
from tsarch.data.rows import Place
from tsarch.errors import UserError

_FORMATS = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson", ".jsonlines"), "json"),
    **dict.fromkeys((".conll", ".conllu", ".iob", ".iob2", ".bio", ".txt"), "conll"),
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    ".parquet": "parquet",
}
CONTAINERS = ("jsonl", "json", "conll", "csv", "parquet")
STDIN = "-"
"""In place of a file's path: standard input."""
_TITLES = {"json": "JSON", "conll": "CoNLL"}
PARQUET = b"PAR1"


def file_rows(
    path: str | list[str] | None,
    key: str,
    data: DataConfig,
    reader: RowReader[Any],
    findings: Findings,
    streamed: bool = False,
) -> Found:
    """Rows of a file, or two, that the config's `key` names; broken lines go to the mistakes.

    Args:
        streamed: files are read as their rows are used, not as a whole before; a single one, or a
            pattern.

    Raises:
        UserError: the file as a whole can't be read.
    """
    if path is None:
        raise UserError.single(key, "is missing.")
    names = column_names(reader)
    labelled = reader.label_column in reader.needed
    if isinstance(path, list):
        found = parallel_rows(path, key, reader.needed, data.encoding, findings)
    elif "tags" in names and is_brat(path):
        found = brat_rows(path, f"{key}: {path}", names, labelled, data.encoding, findings)
    else:
        found = _all_files(path, key, data, reader, findings, streamed)
        found = with_shape(found, reader.shapes, data.format, names, labelled, findings)
    found = with_nested(found, [*reader.needed, *reader.optional])
    yield from with_sentences(found, names, findings)


def named_files(path: str) -> list[str]:
    """The file, or all files that a pattern such as `train/*.json` names, in order."""
    return [path] if os.path.exists(path) else sorted(glob.glob(path)) or [path]


def _all_files(
    path: str,
    key: str,
    data: DataConfig,
    reader: RowReader[Any],
    findings: Findings,
    streamed: bool,
) -> Found:
    """Rows of all `named_files`."""
    files = named_files(path)
    if files == [path]:
        yield from _one_file(path, f"{key}: {path}", data, reader, findings, streamed)
        return
    findings.note(f"read from the {len(files):,} files that the pattern names")
    doc_id = column_names(reader).get("doc_id", "")
    for file in files:
        for place, row in _one_file(file, f"{key}: {file}", data, reader, findings, streamed):
            if place.line_per_word and doc_id in row:  # numbered anew in each file
                row[doc_id] = f"{file}: {row[doc_id]}"
            yield place, row


def _one_file(
    path: str,
    where: str,
    data: DataConfig,
    reader: RowReader[Any],
    findings: Findings,
    streamed: bool,
) -> Found:
    if not streamed:
        content = read_content(path, where)
        read = partial(decoded, content, path, where, data.encoding, findings)
        yield from _rows(path, content, read, data, reader, findings, told=True)
        return
    with opened(path, where) as file:

        def begin() -> Text:
            return text_of(unpacking(file, where), where, data.encoding, file.tell)

        yield from _rows(path, file.peek(), begin, data, reader, findings, told=False)


def _rows(
    path: str,
    content: bytes,
    read: Callable[[], Text],
    data: DataConfig,
    reader: RowReader[Any],
    findings: Findings,
    told: bool,
) -> Found:
    """Rows of a file.

    Args:
        content: it, or how it begins.
        read: gives it as a text.
        told: lines that are no sound text are among the mistakes once it has.
    """
    names = column_names(reader)
    kind = _kind(path, content, data, findings)
    if kind == "parquet":
        yield from parquet_rows(path, data, reader)
        return
    text = read()
    if data.format not in CONTAINERS:
        kind = _told(text, kind, "tags" in names, findings)
    if kind is None:
        raise _unknown(path, text, names)
    findings.guess = lambda: text_kind(text.start, kind)
    for place, row in text_rows(kind, path, text, data, reader, findings):
        if text.broken and not told:
            _tell_broken(path, text, findings)
            told = True
        if place.number not in text.broken:
            yield place, row
    if text.broken and not told:
        _tell_broken(path, text, findings)


def _tell_broken(path: str, text: Text, findings: Findings) -> None:
    hint = "Name its encoding: data.encoding."
    findings.mistake(f"{path}:{min(text.broken)}", "is not UTF-8 text.", hint)


def _kind(path: str, content: bytes, data: DataConfig, findings: Findings) -> str | None:
    if data.format in CONTAINERS:
        return data.format
    kind = kind_of_name(path)
    if content.startswith(PARQUET) and b"\x00" in content[:4096]:
        if kind != "parquet":
            findings.note("read as Parquet, which it is")
        return "parquet"
    return "json" if kind is None and data.format != "auto" else kind


def kind_of_name(path: str) -> str | None:
    """The format that a file's ending names; None: none that is known."""
    return _FORMATS.get(os.path.splitext(inner_name(path))[1].lower())


def _told(text: Text, kind: str | None, is_tagged: bool, findings: Findings) -> str | None:
    """The format of a text, from what it begins with."""
    told = format_of(text.start, kind, is_tagged)
    if told is not None and told != kind:
        findings.note(f"read as {_TITLES[told]}, to judge by what it begins with")
        return told
    return kind


def told_of_lines(path: str, text: Text, data: DataConfig, reader: RowReader[Any]) -> str:
    """The format of a text that is only predicted; `text`: each line is an input.

    Raises:
        UserError: it can't be told.
    """
    names = column_names(reader)
    if data.format in CONTAINERS:
        return data.format
    told = format_of(text.start, None, "tags" in names)
    kind = kind_of_name(path)
    is_plain = path == STDIN or inner_name(path).lower().endswith(".txt")
    if is_plain or (kind is None and "source" in names):
        if told is None and (text.start.startswith(WEBANNO) or "__eou__" in text.start):
            return "conll"
        if told is None and path == STDIN and is_table(text.start, data, reader):
            return "csv"
        return told or "text"
    kind = format_of(text.start, kind, "tags" in names)
    if kind is None and data.format != "auto":
        return "json"
    if kind is None:
        raise _unknown(path, text, names)
    return kind


def _unknown(path: str, text: Text, names: dict[str, str]) -> UserError:
    hint = text_kind(text.start) or "Set data.format to jsonl, json, conll, csv or parquet."
    if "source" in names:
        hint += " Two text files, line by line: data.train: [SOURCE, TARGET]."
    return UserError.single(path, "has an ending that names no known format.", hint)


def text_rows(
    kind: str,
    path: str,
    text: Text,
    data: DataConfig,
    reader: RowReader[Any],
    findings: Findings,
    only_predicted: bool = False,
) -> Found:
    """Rows of a text, of the format `kind`.

    Args:
        only_predicted: all columns are kept, and a `text` does where others are needed.
    """
    names = column_names(reader)
    labelled = reader.label_column in reader.needed
    if text.start.startswith(WEBANNO) and "tags" in names:
        return webanno_rows(path, text, names, findings, labelled)
    if kind == "conll" and "tags" in names:
        return conll_rows(path, text, names, data.delimiter, findings, labelled)
    if kind in ("conll", "csv") and not ("__eou__" in text.start and "history" in names):
        return delimited_rows(path, text, data, reader, findings, only_predicted)
    if kind in ("conll", "csv"):
        return _daily_dialog_rows(path, text)
    chosen = data.format if data.format in ("json", "jsonl") else None
    return json_rows(path, text, reader.needed, chosen, findings, only_predicted)


def _daily_dialog_rows(path: str, text: Text) -> Found:
    """DailyDialog's text: a dialogue a line, `__eou__` after each turn."""
    for number, line in enumerate(text.lines(), 1):
        turns = [turn.strip() for turn in line.split("__eou__") if turn.strip()]
        if turns:
            yield Place(path, number), {"dialog": turns}


def column_names(reader: RowReader[Any]) -> dict[str, str]:
    """The task's own name of each column → its name."""
    return {name: str(value) for name, value in reader.columns.model_dump().items()}
