"""Rows of any task as plain JSON Lines, and what tells one row from another."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsarch.config import DataConfig
from tsarch.config_loading import columns_of
from tsarch.data.corpus import read_file
from tsarch.data.row_reader import RowReader
from tsarch.data.rows import DocumentColumns, Row
from tsarch.run.versions import write_durably
from tsarch.tasks.registry import is_generative, row_reader

_DOCUMENT, _SENTENCE = "doc_id", "sent_id"
UNLABELLED = "unlabelled.jsonl"
"""File of a refit's folder with the text without labels that is learned of besides."""


def plain_data(task: str, **files: str | None) -> dict[str, Any]:
    """Values of all keys of `data` that say how files are read, for files that `PlainRows`
    writes."""
    return {
        "hub": None,
        "format": "jsonl",
        "encoding": None,
        "delimiter": None,
        "quoting": "auto",
        "tag_scheme": "iob2",
        "span_ends": "exclusive",
        "odd_words": "keep",
        "columns": columns_of(task)().model_dump(),
        **files,
    }


@dataclass(frozen=True)
class Document:
    """Rows that stand together, with a name that no other document has."""

    name: str
    rows: tuple[Row, ...]


class PlainRows:
    """Writes and reads the rows of a task under its own names of columns."""

    def __init__(self, task: str) -> None:
        self._data = DataConfig(train="rows").model_copy(update=plain_data(task))
        self._reader: RowReader[Any] = row_reader(task, self._data)
        asked: RowReader[Any] = row_reader(task, self._data, labelled=False)
        further = asked.optional if is_generative(task) else ()  # else names of rows and queries
        self._inputs = {*asked.needed, *further}
        self._has_documents = isinstance(self._reader.columns, DocumentColumns)

    def key(self, row: Row) -> str:
        """What tells a row's input from another's, whatever its label, its file and its id."""
        raw = self._reader.raw(row)
        own_id = row.origin.unique_id
        names = [k for k in raw if k in self._inputs and (own_id is None or raw[k] != own_id)]
        own = {name: raw[name] for name in names}
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()

    def write(self, path: Path, documents: Iterable[Document]) -> None:
        """Write documents, in order; they are read again as the rows that they are."""
        lines = (json.dumps(raw, ensure_ascii=False) for own in documents for raw in self._raw(own))
        write_durably(path, "".join(f"{line}\n" for line in lines))

    def _raw(self, document: Document) -> Iterable[dict[str, Any]]:
        for number, row in enumerate(document.rows):
            raw = self._reader.raw(row)
            if row.origin.unique_id is not None:
                names = [name for name, value in raw.items() if value == row.origin.unique_id]
                raw |= dict.fromkeys(names, document.name)
            if self._has_documents:
                raw = {_DOCUMENT: document.name, _SENTENCE: number, **raw}
            yield raw

    def read(self, path: Path) -> tuple[Row, ...]:
        """The rows of a file that `write` has written; none of an empty one."""
        if not path.is_file() or path.stat().st_size == 0:
            return ()
        rows: tuple[Row, ...] = read_file(str(path), self._data, self._reader)
        return rows

    def keys(self, rows: Iterable[Row]) -> set[str]:
        """The keys of rows."""
        return {self.key(row) for row in rows}


def documents_of(rows: Sequence[Row], prefix: str) -> list[Document]:
    """Rows that are in order, as documents that are named by their number behind `prefix`."""
    groups = itertools.groupby(rows, key=lambda row: row.origin.doc_id)
    return [Document(f"{prefix}{n}", tuple(own)) for n, (_, own) in enumerate(groups)]
