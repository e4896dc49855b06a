"""Raw rows of a file or a hub data set, each with its place, so that mistakes can name it.

JSON Lines and CoNLL are parsed here, because a mistake in them has to be shown with its line.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsarch.config import Columns, DataConfig
from tsarch.data.cache import cache_root
from tsarch.data.conll import read_conll
from tsarch.data.row_reader import RowReader
from tsarch.data.rows import Place, from_json, no_column
from tsarch.errors import Mistake, UserError, one_line

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_NAMES = {"train": ("train",), "validation": ("validation", "dev", "valid"), "test": ("test",)}
_FORMATS = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), "jsonl"),
    **dict.fromkeys((".conll", ".iob", ".iob2", ".bio", ".txt"), "conll"),
    ".csv": "csv",
    ".parquet": "parquet",
}


Found = Iterator[tuple[Place, dict[str, Any]]]
"""Raw rows, column → value, as a source holds them."""


def file_rows(
    path: str | None, key: str, data: DataConfig, reader: RowReader[Any], mistakes: list[Mistake]
) -> Found:
    """Rows of a file that the config's `key` names; broken lines go to `mistakes`.

    Raises:
        UserError: the file as a whole can't be read.
    """
    if path is None:
        raise UserError.single(key, "is missing.")
    kind = data.format if data.format != "auto" else _FORMATS.get(Path(path).suffix.lower())
    if kind is None:
        hint = "Set data.format to jsonl, conll, csv or parquet."
        raise UserError.single(path, "has an ending that names no known format.", hint)
    where = f"{key}: {path}"
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise UserError.single(where, "can't be read: it is no file.")  # a pipe would never end
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError.single(where, f"can't be read: {error.strerror}.") from None
    if not content.strip():
        raise UserError.single(where, "is empty.")
    if kind == "parquet":
        yield from _table_rows(_load_table(kind, path, data), path, reader)
        return
    lines = [] if _is_utf8(content) else content.split(b"\n")
    broken = {number for number, line in enumerate(lines, 1) if not _is_utf8(line)}
    mistakes += [Mistake(f"{path}:{n}", "is not UTF-8 text.") for n in sorted(broken)]
    text = content.decode("utf-8-sig", errors="replace")
    if kind == "csv":
        found = _csv_rows(path, text, data, reader)
    elif kind == "conll":
        found = _conll_rows(path, text, reader.columns)
    else:
        found = _jsonl_rows(path, text, broken, mistakes)
    yield from (own for own in found if own[0].number not in broken)


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _jsonl_rows(path: str, text: str, broken: set[int], mistakes: list[Mistake]) -> Found:
    for number, line in enumerate(text.split("\n"), 1):
        if number in broken or not line or line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            mistakes.append(Mistake(f"{path}:{number}", f"is not JSON: {error}."))
            continue
        if isinstance(row, dict):
            yield Place(path, number), row
        else:
            hint = "JSON Lines has one object {…} a line."
            mistakes.append(Mistake(f"{path}:{number}", "is not a JSON object.", hint))


def _conll_rows(path: str, text: str, columns: Columns) -> Found:
    names = {own: own for own in ("tokens", "tags", "doc_id")} | columns.model_dump()
    for sentence in read_conll(text):
        row: dict[str, Any] = {names["tokens"]: sentence.tokens, names["tags"]: sentence.tags}
        if sentence.document is not None:
            row[names["doc_id"]] = sentence.document
        yield Place(path, sentence.line, line_per_word=True), row


def _csv_rows(path: str, text: str, data: DataConfig, reader: RowReader[Any]) -> Found:
    """Rows of a CSV file; lists in cells are JSON, or words separated by spaces."""
    header, lines = _csv_lines(path, text)
    names = _wanted(reader, header, path)
    if not lines:
        return
    from datasets import Features, Value

    table = _load_table(
        "csv",
        path,
        data,
        # All text: pandas would read the word `1896` as a number, and `NA` as nothing.
        features=Features({name: Value("string") for name in names}),
        usecols=names,
        keep_default_na=False,
        encoding="utf-8-sig",
        encoding_errors="replace",  # lines that are not UTF-8 are mistakes already
    )
    for place, row in _table_rows(table, path, reader):
        if len(lines) == len(table):
            place = Place(path, lines[place.number - 1])
        for name in reader.word_lists:
            row[name] = _unpacked(row[name])
        yield place, row


def _csv_lines(path: str, text: str) -> tuple[list[str], list[int]]:
    """Column names, and the line where each row starts (a quoted cell may have several lines)."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # at first it is 131,072
    reader = csv.reader(io.StringIO(text, newline=""))
    header: list[str] = []
    lines: list[int] = []
    mistakes = []
    ended = 0
    try:
        for cells in reader:
            start, ended = ended + 1, reader.line_num
            if len(cells) <= 1 and not "".join(cells).strip():
                continue
            if header:
                lines.append(start)
            header = header or cells
            if len(cells) > len(header):
                what = f"has {len(cells)} cells, the header has {len(header)}."
                mistakes.append(Mistake(f"{path}:{start}", what))
    except csv.Error as error:
        mistakes.append(Mistake(f"{path}:{reader.line_num}", f"is not CSV: {error}."))
    if mistakes:
        raise UserError(mistakes)
    return header, lines


def _unpacked(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    if not cell.lstrip().startswith(('["', "['", "[]")):
        return [word for word in cell.split(" ") if word]
    return from_json(cell)


def _load_table(kind: str, path: str, data: DataConfig, **options: Any) -> Dataset:
    from datasets import load_dataset

    cache = str(cache_root(data.cache_folder))
    try:
        # Escaped: `datasets` would take `*` and `[1]` in a name for a pattern of several files.
        own = glob.escape(path)
        return load_dataset(kind, data_files=own, split="train", cache_dir=cache, **options)
    except Exception as error:  # whatever pandas or Arrow raise, as it is or wrapped
        reason = one_line(error.__cause__ or error)
        raise UserError.single(path, f"can't be read as {kind}: {reason}") from None


def load_hub(data: DataConfig) -> dict[str, Dataset]:
    """All splits of the hub data set, or of a local folder in its place."""
    from datasets import load_dataset

    assert data.hub is not None
    folder = Path(data.hub).expanduser()
    name = str(folder) if folder.is_dir() else data.hub
    cache = str(cache_root(data.cache_folder))
    try:
        sets: dict[str, Dataset] = load_dataset(name, data.hub_config, cache_dir=cache)
    except Exception as error:  # the hub client, the builders and Arrow raise what they like
        reason = one_line(error.__cause__ or error)
        raise UserError.single(f"data.hub: {data.hub}", f"can't be loaded: {reason}") from None
    return sets


def hub_rows(
    data: DataConfig, reader: RowReader[Any], split: str, sets: dict[str, Dataset]
) -> Found:
    name = next((name for name in _HUB_NAMES[split] if name in sets), None)
    if name is None:
        hint = f"Its splits: {', '.join(sets)}."
        raise UserError.single(f"data.hub: {data.hub}", f"has no split `{split}`.", hint)
    yield from _table_rows(sets[name], f"{data.hub} ({name})", reader)


def _table_rows(table: Dataset, source: str, reader: RowReader[Any]) -> Found:
    """Rows of a table; class numbers become the names that the table has for them.

    Raises:
        UserError: a column is missing.
    """
    from datasets import ClassLabel

    values = table.select_columns(_wanted(reader, table.column_names, source)).to_dict()
    column = reader.label_column
    feature = table.features.get(column)
    item = getattr(feature, "feature", feature)
    if isinstance(item, ClassLabel) and column in values:
        names = dict(enumerate(item.names))
        values[column] = [_named(label, names) for label in values[column]]
    for number, row in enumerate(zip(*values.values()), 1):
        yield Place(source, number, unit="row "), dict(zip(values, row))


def _named(label: Any, names: dict[int, str]) -> Any:
    """A class number, or a list of them, as names; what is none as it is."""
    if isinstance(label, list):
        return [names.get(own, own) for own in label]
    return names.get(label, label)


def _wanted(reader: RowReader[Any], names: Sequence[str], source: str) -> list[str]:
    """The columns of a table that are read.

    Raises:
        UserError: a column is missing.
    """
    needed = reader.needed
    missing = [name for name in needed if name not in names]
    if missing:
        raise UserError(no_column(source, name, names) for name in missing)
    optional = [name for name in reader.optional if name in names]
    return list(dict.fromkeys((*needed, *optional)))
