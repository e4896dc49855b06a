"""Reads labelled sentences from files or a hub data set, through `datasets`, and checks them.

Whatever the source, a split becomes a `Dataset` with the columns doc_id, tokens and tags, the
sentences of a document together and in order. All mistakes are collected before one is shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsarch.config import DataConfig
from tsarch.data.conll import read_conll
from tsarch.errors import Mistake, UserError

SPLITS = ("train", "validation", "test")
_HUB_NAMES = {"train": ("train",), "validation": ("validation", "dev", "valid"), "test": ("test",)}
_FORMATS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".conll": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".bio": "conll",
    ".txt": "conll",
    ".csv": "csv",
    ".parquet": "parquet",
}
_MAX_SHOWN = 50


@dataclass(frozen=True)
class Corpus:
    """The three splits and their labels."""

    splits: dict[str, Any]
    """Split → `datasets.Dataset` with doc_id, tokens, tags."""
    labels: tuple[str, ...]
    """`O`, then B- and I- of every entity type of the training split."""
    notes: tuple[str, ...]
    """Remarks for the user."""


@dataclass
class Row:
    """One sentence and where it came from."""

    where: str
    doc_id: str
    sent_id: Any
    tokens: list[str]
    tags: list[str]


def default_cache(data: DataConfig) -> str:
    """Folder of `datasets`' files."""
    return str(Path(data.cache_folder or "~/.cache/tsarch").expanduser())


def read_splits(data: DataConfig) -> Corpus:
    """Read, check and order the three splits.

    Raises:
        UserError: names every mistake with file and line.
    """
    mistakes: list[Mistake] = []
    rows = {split: _read_split(data, split, mistakes) for split in SPLITS}
    for split in SPLITS:
        for row in rows[split]:
            if data.tag_scheme == "iob1":
                row.tags = iob1_to_iob2(row.tags)
            mistakes += _check_row(row)
        mistakes += _check_order(rows[split])
    notes: list[str] = []
    if not mistakes:
        mistakes, notes = _check_types(rows)
    if mistakes:
        raise UserError(_shortened(mistakes))
    splits = {split: _dataset(_in_order(rows[split])) for split in SPLITS}
    types = sorted(_types(rows["train"]))
    labels = ("O", *(f"{prefix}-{name}" for name in types for prefix in "BI"))
    return Corpus(splits, labels, tuple(notes))


def iob1_to_iob2(tags: Sequence[str]) -> list[str]:
    """IOB1 (B- only between touching entities of a type) to IOB2 (B- at every start)."""
    result = []
    previous = "O"
    for tag in tags:
        if tag.startswith("I-") and previous[1:] != tag[1:]:
            result.append("B" + tag[1:])
        else:
            result.append(tag)
        previous = tag
    return result


def _read_split(data: DataConfig, split: str, mistakes: list[Mistake]) -> list[Row]:
    if data.hub is not None:
        found, names = _read_hub(data, split), None
    else:
        path = getattr(data, split)
        try:
            found, names = _read_file(path, data, mistakes)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            mistakes.append(Mistake(f"data.{split}: {path}", f"can't be read: {reason}."))
            return []
    where = data.hub or getattr(data, split)
    rows = []
    for number, raw in enumerate(found):
        place = f"{where}:{names[number] if names else number + 1}"
        row = _row(raw, data, place, mistakes)
        if row is not None:
            rows.append(row)
    if not found and not mistakes:
        mistakes.append(Mistake(f"data.{split}: {where}", "has no sentences."))
    return rows


def _read_file(
    path: str, data: DataConfig, mistakes: list[Mistake]
) -> tuple[list[dict[str, Any]], list[int] | None]:
    """Raw rows and their line numbers (None where the row's own number is meant)."""
    with Path(path).open("rb") as file:
        file.read(1)
    kind = data.format if data.format != "auto" else _FORMATS.get(Path(path).suffix.lower())
    if kind == "jsonl":
        return _read_jsonl(path, mistakes)
    if kind == "conll":
        rows = list(read_conll(path))
        return rows, [row["line"] for row in rows]
    if kind in ("csv", "parquet"):
        from datasets import load_dataset

        table = load_dataset(kind, data_files=path, split="train", cache_dir=default_cache(data))
        return [_unpack_cells(row) for row in table], None
    hint = "Set data.format to jsonl, conll, csv or parquet."
    mistakes.append(Mistake(path, "has an ending that names no known format.", hint))
    return [], None


def _read_jsonl(path: str, mistakes: list[Mistake]) -> tuple[list[dict[str, Any]], list[int]]:
    """Objects and their line numbers; read line by line so that mistakes have a place."""
    rows, numbers = [], []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            mistakes.append(Mistake(f"{path}:{number}", f"is not JSON: {error}."))
            continue
        if not isinstance(row, dict):
            mistakes.append(Mistake(f"{path}:{number}", "is not a JSON object."))
            continue
        rows.append(row)
        numbers.append(number)
    return rows, numbers


def _unpack_cells(row: dict[str, Any]) -> dict[str, Any]:
    """Lists in CSV cells are JSON, or separated by spaces."""
    return {
        name: (json.loads(value) if value.lstrip().startswith("[") else value.split())
        if isinstance(value, str) and name in ("tokens", "tags")
        else value
        for name, value in row.items()
    }


def _read_hub(data: DataConfig, split: str) -> list[dict[str, Any]]:
    from datasets import ClassLabel, load_dataset

    assert data.hub is not None
    try:
        sets = load_dataset(data.hub, data.hub_config, cache_dir=default_cache(data))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError.single(f"data.hub: {data.hub}", f"can't be loaded: {reason}") from None
    name = next((name for name in _HUB_NAMES[split] if name in sets), None)
    if name is None:
        raise UserError.single(f"data.hub: {data.hub}", f"has no split `{split}`.")
    table = sets[name]
    feature = table.features.get(data.columns.tags)
    inner = getattr(feature, "feature", None)
    if not isinstance(inner, ClassLabel):
        return list(table)
    decoded = [inner.int2str(tags) for tags in table[data.columns.tags]]
    return [{**row, data.columns.tags: tags} for row, tags in zip(table, decoded)]


def _row(raw: dict[str, Any], data: DataConfig, where: str, mistakes: list[Mistake]) -> Row | None:
    columns = data.columns
    for name in (columns.tokens, columns.tags):
        value = raw.get(name)
        if value is None:
            hint = f"Columns: {', '.join(map(str, raw))}. Set data.columns if names differ."
            mistakes.append(Mistake(where, f"has no column `{name}`.", hint))
            return None
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            mistakes.append(Mistake(where, f"`{name}` is not a list of strings."))
            return None
    doc_id = str(raw.get(columns.doc_id, where))
    return Row(where, doc_id, raw.get(columns.sent_id), raw[columns.tokens], raw[columns.tags])


def _check_row(row: Row) -> list[Mistake]:
    if len(row.tokens) != len(row.tags):
        what = f"has {len(row.tokens)} tokens but {len(row.tags)} tags."
        return [Mistake(row.where, what)]
    if not row.tokens:
        return [Mistake(row.where, "has no tokens.")]
    previous = "O"
    for place, tag in enumerate(row.tags):
        if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) < 3):
            return [Mistake(row.where, f"tag {place + 1} is `{tag}`, not O, B-TYPE or I-TYPE.")]
        if tag.startswith("I-") and previous[1:] != tag[1:]:
            what = f"tag {place + 1} is `{tag}` after `{previous}`, which IOB2 doesn't allow."
            return [Mistake(row.where, what, "For IOB1 data set data.tag_scheme to iob1.")]
        previous = tag
    return []


def _check_order(rows: Sequence[Row]) -> list[Mistake]:
    seen: dict[tuple[str, Any], str] = {}
    mistakes = []
    for row in rows:
        if row.sent_id is None:
            continue
        key = (row.doc_id, str(row.sent_id))
        if key in seen:
            what = f"sentence {row.sent_id} of document {row.doc_id} was at {seen[key]} already."
            mistakes.append(Mistake(row.where, what))
        seen[key] = row.where
    return mistakes


def _types(rows: Iterable[Row]) -> dict[str, str]:
    """Entity type → where it is first."""
    found: dict[str, str] = {}
    for row in rows:
        for tag in row.tags:
            if tag != "O":
                found.setdefault(tag[2:], row.where)
    return found


def _check_types(rows: dict[str, list[Row]]) -> tuple[list[Mistake], list[str]]:
    known = _types(rows["train"])
    mistakes, notes = [], []
    for split in ("validation", "test"):
        own = _types(rows[split])
        for name, where in own.items():
            if name not in known:
                what = f"the {split} split has the label `{name}`, the training split has not"
                hint = f"(its labels: {', '.join(sorted(known)) or 'none'})."
                mistakes.append(Mistake(where, what, hint))
        notes += [f"label {name} is not in the {split} split" for name in known if name not in own]
    return mistakes, notes


def _in_order(rows: Sequence[Row]) -> list[Row]:
    """Documents in order of appearance, their sentences by sent_id."""
    documents: dict[str, list[Row]] = {}
    for row in rows:
        documents.setdefault(row.doc_id, []).append(row)
    ordered = []
    for own in documents.values():
        if all(isinstance(row.sent_id, int) for row in own):
            own.sort(key=lambda row: row.sent_id)
        ordered += own
    return ordered


def _dataset(rows: Sequence[Row]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "doc_id": [row.doc_id for row in rows],
            "tokens": [row.tokens for row in rows],
            "tags": [row.tags for row in rows],
        }
    )


def _shortened(mistakes: list[Mistake]) -> list[Mistake]:
    if len(mistakes) <= _MAX_SHOWN:
        return mistakes
    more = Mistake("…", f"and {len(mistakes) - _MAX_SHOWN} more mistakes.")
    return [*mistakes[:_MAX_SHOWN], more]
