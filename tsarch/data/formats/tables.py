"""Parquet files and hub data sets, through `datasets`."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tsarch.config import DataConfig
from tsarch.data.cache import table_cache
from tsarch.data.formats.findings import Findings, Found
from tsarch.data.formats.shapes import fitting, with_nested, with_shape
from tsarch.data.formats.word_rows import with_sentences
from tsarch.data.hub import WAYS_ON, unreachable
from tsarch.data.row_reader import RowReader
from tsarch.data.rows import Place, no_column
from tsarch.errors import UserError, one_line

if TYPE_CHECKING:
    from datasets import Dataset

_LOOKED_AT = 20
_ROWS_AT_ONCE = 1024
_HUB_NAMES = {"train": ("train",), "validation": ("validation", "dev", "valid"), "test": ("test",)}


def parquet_rows(path: str, data: DataConfig, reader: RowReader[Any]) -> Found:
    """Rows of a Parquet file.

    Raises:
        UserError: it can't be read, or a column is missing.
    """
    from datasets import load_dataset

    try:
        # Escaped: `datasets` would take `*` and `[1]` in a name for a pattern of several files.
        own = glob.escape(path)
        with table_cache(data) as options:
            table = load_dataset("parquet", data_files=own, split="train", **options)
    except UserError:
        raise
    except Exception as error:  # whatever Arrow raises, as it is or wrapped
        reason = one_line(error.__cause__ or error)
        raise UserError.single(path, f"can't be read as parquet: {reason}") from None
    yield from table_rows(table, path, data, reader)


def parquet_stream(binary: IO[bytes], path: str) -> Iterator[tuple[Place, dict[str, Any], int]]:
    """Rows of an open Parquet file, all of their columns, and how many there are in all; a few
    are held at a time.

    Raises:
        UserError: it can't be read.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    number = 0
    try:
        file = pq.ParquetFile(binary)
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                number += 1
                yield Place(path, number, unit="row "), row, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        reason = one_line(error)
        raise UserError.single(path, f"can't be read as parquet: {reason}") from None


def load_hub(data: DataConfig) -> dict[str, Dataset]:
    """All splits of the hub data set, or of a local folder in its place."""
    from datasets import load_dataset

    assert data.hub is not None
    folder = Path(data.hub).expanduser()
    name = str(folder) if folder.is_dir() else data.hub
    absent = None if folder.is_dir() else unreachable()
    try:
        with table_cache(data) as options:
            sets: dict[str, Dataset] = load_dataset(name, data.hub_config, **options)
    except UserError:
        raise
    except Exception as error:  # the hub client, the builders and Arrow raise what they like
        where = f"data.hub: {data.hub}"
        if absent is not None:
            what = f"can't be loaded: it is not in the cache, and {absent}."
            raise UserError.single(where, what, WAYS_ON) from None
        reason = one_line(error.__cause__ or error)
        raise UserError.single(where, f"can't be loaded: {reason}") from None
    return sets


def hub_split(split: str, sets: Mapping[str, Any]) -> str | None:
    """The name that a hub data set has for a split; None: it has no such split."""
    return next((name for name in _HUB_NAMES[split] if name in sets), None)


def hub_rows(
    data: DataConfig,
    reader: RowReader[Any],
    split: str,
    sets: dict[str, Dataset],
    findings: Findings,
) -> Found:
    """Rows of a split of a hub data set.

    Raises:
        UserError: it isn't there, or a column is missing.
    """
    name = hub_split(split, sets)
    if name is None:
        hint = f"Its splits: {', '.join(sets)}."
        raise UserError.single(f"data.hub: {data.hub}", f"has no split `{split}`.", hint)
    names = {own: str(value) for own, value in reader.columns.model_dump().items()}
    labelled = reader.label_column in reader.needed
    found = table_rows(sets[name], f"{data.hub} ({name})", data, reader)
    found = with_shape(found, reader.shapes, data.format, names, labelled, findings)
    found = with_nested(found, [*reader.needed, *reader.optional])
    yield from with_sentences(found, names, findings)


def table_rows(table: Dataset, source: str, data: DataConfig, reader: RowReader[Any]) -> Found:
    """Rows of a table; class numbers become the names that the table has for them.

    Raises:
        UserError: a column is missing.
    """
    from datasets import ClassLabel

    names = {own: str(value) for own, value in reader.columns.model_dump().items()}
    first = [table[number] for number in range(min(len(table), _LOOKED_AT))]
    if fitting(first, reader.shapes, data.format, names) is None:
        columns = first[0] if first else dict.fromkeys(table.column_names)
        table = table.select_columns(_wanted(reader, columns, source))
    column = reader.label_column
    feature = table.features.get(column)
    item = getattr(feature, "feature", feature)
    classes = dict(enumerate(item.names)) if isinstance(item, ClassLabel) else None
    if classes is not None and len(table) > 0:
        labels = _table_rows(table.select_columns([column]))
        if all(str(row[column]) == "-1" for row in labels):
            what = f"has no labels: `{column}` is −1 in every row, as where they are kept back."
            raise UserError.single(source, what, "Take a split whose labels are known.")
    for number, row in enumerate(_table_rows(table), 1):
        if classes is not None:
            row[column] = _named(row[column], classes)
        yield Place(source, number, unit="row "), row


def _table_rows(table: Dataset) -> Iterator[dict[str, Any]]:
    """Rows of a table, a few of which are held at a time."""
    for batch in table.with_format("arrow").iter(_ROWS_AT_ONCE):
        values = batch.to_pydict()
        yield from (dict(zip(values, row)) for row in zip(*values.values()))


def _named(label: Any, names: dict[int, str]) -> Any:
    """A class number, or a list of them, as names; what is none as it is."""
    if isinstance(label, list):
        return [names.get(own, own) for own in label]
    return names.get(label, label)


def _wanted(reader: RowReader[Any], names: dict[str, Any], source: str) -> list[str]:
    """The columns of a table that are read.

    Args:
        names: its columns, with a row's values.

    Raises:
        UserError: a column is missing.
    """
    # Of `translation.en` the column is `translation`.
    roots = {name: name if name in names else name.partition(".")[0] for name in reader.needed}
    missing = [name for name, root in roots.items() if root not in names]
    if missing:
        raise UserError([no_column(source, "` and no column `".join(missing), names)])
    optional = [name for name in reader.optional if name in names]
    return list(dict.fromkeys((*roots.values(), *optional)))
