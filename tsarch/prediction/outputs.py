"""Predictions as a file: JSON Lines, or a table whose cells with several values are JSON texts."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import time
from pathlib import Path
from typing import Any

from tsarch.data.sources import PARQUET, STDIN
from tsarch.errors import UserError, one_line

PROBLEM, PREDICTION = "problem", "prediction"
"""Fields of an output row beside the input's own."""
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


def write_table(
    lines: Path, output: Path, columns: Sequence[str], inputs: Sequence[str] = ()
) -> None:
    """Put JSON Lines into the table that the ending of `output` says; the file appears whole.

    Args:
        inputs: files that the rows are of: if all are Parquet, a Parquet `output` has their types.

    Raises:
        UserError: an input can't be read any more.
    """
    new = output.with_name(output.name + ".new")
    kind = _kind(output)
    if kind == "parquet":
        _write_parquet(lines, new, columns, _types(inputs))
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


class _UnlikeError(Exception):
    """Values of a column that its type can't hold as they are."""


def _write_parquet(
    lines: Path, output: Path, columns: Sequence[str], types: Mapping[str, Any]
) -> None:
    """Columns have their types, if these hold all values as they are; others are texts."""
    own = dict(types)
    while True:
        try:
            return _write_columns(lines, output, columns, own)
        except _UnlikeError as error:
            del own[error.args[0]]


def _write_columns(
    lines: Path, output: Path, columns: Sequence[str], types: Mapping[str, Any]
) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    names = {name: _sound(name) for name in columns}
    known = {name: types.get(name, pa.string()) for name in columns}
    schema = pa.schema([(names[name], own) for name, own in known.items()])

    def write(rows: list[dict[str, Any]]) -> None:
        arrays = [_array(name, [row.get(name) for row in rows], known[name]) for name in columns]
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

    with pq.ParquetWriter(output, schema) as writer:
        batch: list[dict[str, Any]] = []
        for row in _rows(lines):
            batch.append(row)
            if len(batch) == _ROWS:
                write(batch)
                batch = []
        write(batch)


def _array(name: str, values: list[Any], kind: Any) -> Any:
    """Values of a column, as JSON has them, in its type.

    Raises:
        _UnlikeError: some would not be what they are.
    """
    import pyarrow as pa

    is_kind = pa.types
    if is_kind.is_string(kind) or is_kind.is_large_string(kind):
        return pa.array(map(_cell, values), kind)
    try:
        if is_kind.is_integer(kind) or is_kind.is_boolean(kind):
            array = pa.array(values, kind)
        elif is_kind.is_floating(kind):
            array = pa.array(values, pa.float64()).cast(kind)
        elif is_kind.is_time(kind):
            times = [None if value is None else time.fromisoformat(value) for value in values]
            array = pa.array(times, kind)
        else:  # JSON has texts of them
            array = pa.array(values, pa.string()).cast(kind)
        again = [_in_json(value) for value in array.to_pylist()]
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        raise _UnlikeError(name) from None
    if again != values or list(map(type, again)) != list(map(type, values)):
        raise _UnlikeError(name)
    return array


def _in_json(value: Any) -> Any:
    """A value as a line has it."""
    return value if value is None or type(value) in (bool, int, float, str) else str(value)


def _types(inputs: Sequence[str]) -> dict[str, Any]:
    """Column → its type, of files that all are Parquet, where that is one of single values and the
    same in all of them.

    Raises:
        UserError: a file can't be read.
    """
    import pyarrow as pa

    found: dict[str, set[Any]] = {}
    for path in inputs:
        schema = _schema(path)
        if schema is None:
            return {}
        for own in schema:
            kind = own.type.value_type if pa.types.is_dictionary(own.type) else own.type
            if not pa.types.is_null(kind):
                found.setdefault(own.name, set()).add(kind)
    return {
        name: kind
        for name, (kind, *others) in found.items()
        if not others and name not in (PROBLEM, PREDICTION) and _is_single(kind)
    }


def _is_single(kind: Any) -> bool:
    from pyarrow import types

    is_number = types.is_primitive(kind) or types.is_decimal(kind)
    return bool(is_number or types.is_large_string(kind))


def _schema(path: str) -> Any:
    """Of a Parquet file; None: it is another one, or standard input.

    Raises:
        UserError: it can't be read.
    """
    import fsspec
    import pyarrow.parquet as pq

    if path == STDIN:
        return None
    try:
        with fsspec.open(path, "rb") as file:
            is_parquet = file.read(len(PARQUET)) == PARQUET
            file.seek(0)
            return pq.read_schema(file) if is_parquet else None
    except Exception as error:  # file systems raise what they like
        raise UserError.single(path, f"can't be read: {one_line(error)}.") from None
