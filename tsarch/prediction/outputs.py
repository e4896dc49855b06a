"""Predictions as a file: JSON Lines, or a table whose cells with several values are JSON texts."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tsarch.errors import UserError

_ROWS = 1024


def check_output(output: Path, inputs: Sequence[str]) -> None:
    """Check that a file can be written there, which is none of the inputs.

    Raises:
        UserError: it can't, or its ending names no form.
    """
    where = f"--output {output}"
    if _kind(output) is None:
        hint = "Endings are .jsonl, .csv, .tsv and .parquet; `-` is standard output."
        raise UserError.single(where, "has an ending that names no known form.", hint)
    if "://" in str(output) or str(output).startswith(("s3:/", "gs:/", "https:/", "http:/")):
        raise UserError.single(where, "is a URL.", "Name a file of this machine, and copy it.")
    if output.is_dir():
        raise UserError.single(where, "is a folder.")
    if not output.absolute().parent.is_dir():
        raise UserError.single(str(output.parent), "is not a folder.", "Make it first.")
    if any(os.path.realpath(path) == os.path.realpath(output) for path in inputs):
        hint = "Answers would take its place: name another file."
        raise UserError.single(where, "is among the inputs.", hint)
    try:
        with tempfile.TemporaryFile(dir=output.absolute().parent):
            pass
    except OSError as error:
        raise UserError.single(where, f"can't be written: {error.strerror}.") from None


def is_lines(output: Path) -> bool:
    """Whether the form is JSON Lines."""
    return _kind(output) == "jsonl"


def write_table(lines: Path, output: Path, columns: Sequence[str]) -> None:
    """Put JSON Lines into the table that the ending of `output` says; the file appears whole."""
    new = output.with_name(output.name + ".new")
    kind = _kind(output)
    if kind == "parquet":
        _write_parquet(lines, new, columns)
    else:
        _write_csv(lines, new, columns, "\t" if kind == "tsv" else ",")
    new.replace(output)


def _kind(output: Path) -> str | None:
    kind = output.suffix.lower().removeprefix(".")
    return kind if kind in ("jsonl", "csv", "tsv", "parquet") else None


def _rows(lines: Path) -> Iterator[dict[str, Any]]:
    with lines.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _cell(value: Any) -> str | None:
    """A value as text; halves of characters, which JSON may have and UTF-8 hasn't, as `\\ud800`."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _sound(text)


def _sound(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _write_csv(lines: Path, output: Path, columns: Sequence[str], delimiter: str) -> None:
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(map(_sound, columns))
        writer.writerows([_cell(row.get(name)) for name in columns] for row in _rows(lines))


def _write_parquet(lines: Path, output: Path, columns: Sequence[str]) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    names = {name: _sound(name) for name in columns}
    schema = pa.schema([(name, pa.string()) for name in names.values()])
    with pq.ParquetWriter(output, schema) as writer:
        batch: list[dict[str, str | None]] = []
        for row in _rows(lines):
            batch.append({own: _cell(row.get(name)) for name, own in names.items()})
            if len(batch) == _ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema))
