"""Inputs from files, one at a time, so that memory doesn't grow with them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import fsspec

from tsarch.errors import UserError, one_line

ENDINGS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
    ".txt": "text",
}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_PARQUET_ROWS = 1024


@dataclass(frozen=True)
class FileInput:
    """One input, and where it stands."""

    value: str | dict[str, Any] | None
    """A line of a text, or a row; None: it can't be read, as `problem` says."""
    place: str
    problem: str = ""


def input_files(patterns: Sequence[str]) -> list[str]:
    """The files that paths, globs and URLs name, each pattern's in the order of their names.

    Raises:
        UserError: one names none, or a file whose ending says nothing.
    """
    found: list[str] = []
    for pattern in patterns:
        try:
            files = sorted(_name(own) for own in fsspec.open_files(pattern, "rb") if _is_there(own))
        except Exception as error:  # file systems raise what they like
            raise UserError.single(pattern, f"can't be read: {one_line(error)}.") from None
        if not files:
            raise UserError.single(pattern, "names no file.")
        found += files
    for path in found:
        kind_of(path)
    return found


def kind_of(path: str) -> str:
    """`jsonl`, `csv`, `parquet` or `text`, by the ending.

    Raises:
        UserError: by its ending it is none.
    """
    name = path.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    kind = next((kind for ending, kind in ENDINGS.items() if name.endswith(ending)), None)
    if kind is None:
        hint = f"Endings are {', '.join(ENDINGS)}, also compressed ({', '.join(_COMPRESSED)})."
        raise UserError.single(path, "has an ending that names no known format.", hint)
    return kind


def _name(file: fsspec.core.OpenFile) -> str:
    """A local file's path, or a URL."""
    return str(file.path if "file" in file.fs.protocol else file.full_name)


def _is_there(file: fsspec.core.OpenFile) -> bool:
    return bool(file.fs.isfile(file.path))


class InputFile:
    """The inputs of one file, in order: its rows, or the lines of a text that aren't empty."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.size = _size(path)
        """Bytes."""
        self.position = 0
        """Bytes that have been read, or so."""

    def __iter__(self) -> Iterator[FileInput]:
        """The inputs.

        Raises:
            UserError: the file as a whole can't be read.
        """
        kind = kind_of(self.path)
        try:
            with fsspec.open(self.path, "rb") as binary:
                if kind == "parquet":
                    yield from self._parquet(binary)
                    return
                text = io.TextIOWrapper(
                    _unpacked(self.path, binary), "utf-8-sig", errors="replace", newline=""
                )
                for own in {"jsonl": _jsonl, "csv": _csv, "text": _lines}[kind](self.path, text):
                    self.position = binary.tell()
                    yield own
        except UserError:
            raise
        except Exception as error:  # file systems and unpackers raise what they like
            raise UserError.single(self.path, f"can't be read: {one_line(error)}.") from None

    def _parquet(self, binary: IO[bytes]) -> Iterator[FileInput]:
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        file = pq.ParquetFile(binary)
        number = 0
        for batch in file.iter_batches(_PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                self.position = self.size * number // file.metadata.num_rows
                yield FileInput(row, f"{self.path}:row {number}")


def _unpacked(path: str, binary: IO[bytes]) -> Any:
    name = fsspec.utils.infer_compression(path)
    return binary if name is None else fsspec.compression.compr[name](binary, mode="rb")


def _size(path: str) -> int:
    filesystem, own = fsspec.core.url_to_fs(path)
    return int(filesystem.size(own) or 0)


def _lines(path: str, text: IO[str]) -> Iterator[FileInput]:
    for number, line in enumerate(text, 1):
        if line.strip():
            yield _checked(line.rstrip("\r\n"), line, f"{path}:{number}")


def _jsonl(path: str, text: IO[str]) -> Iterator[FileInput]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield FileInput(None, place, f"is not JSON: {error}.")
            continue
        if isinstance(row, dict | str):
            yield _checked(row, line, place)
        else:
            yield FileInput(None, place, "is neither a JSON object nor a text.")


def _csv(path: str, text: IO[str]) -> Iterator[FileInput]:
    delimiter = "\t" if ".tsv" in path.lower() else ","
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(text, delimiter=delimiter)
    header = next(rows, None)
    if header is None:
        return
    for cells in rows:
        if not cells:
            continue
        place = f"{path}:{rows.line_num}"
        if len(cells) != len(header):
            yield FileInput(None, place, f"has {len(cells)} cells, the header has {len(header)}.")
        else:
            yield _checked(dict(zip(header, cells, strict=True)), "".join(cells), place)


def _checked(value: str | dict[str, Any], raw: str, place: str) -> FileInput:
    if "\ufffd" in raw:
        return FileInput(None, place, "is not UTF-8 text.")
    return FileInput(value, place)
