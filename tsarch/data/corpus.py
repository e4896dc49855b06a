"""Reads a task's rows from files or a hub data set, through `datasets`, and checks them.

Whatever the source, a split becomes a `Dataset` with the columns doc_id, tokens, tags and focus,
the rows of a document together and in order. All mistakes are collected before one is shown.
Raw rows come from `sources.py`; what they mean says the task's `RowSchema`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tsarch.config import ColumnsConfig, DataConfig
from tsarch.data.rows import Layout, Place, Row, RowSchema, shown
from tsarch.data.sources import Found, file_rows, hub_rows, load_hub
from tsarch.errors import Mistake, UserError

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
_MAX_SHOWN = 50
_MAX_DIGITS = 100  # Python refuses to read numbers of thousands


@dataclass(frozen=True)
class Corpus:
    """The three splits and their labels."""

    splits: dict[str, Dataset]
    """Split → `datasets.Dataset` with doc_id (str), tokens (list[str]), tags (list[str]: one a
    word, or one in all), focus (int or None: see `Row`)."""
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    """Remarks for the user."""
    layout: Layout = "words"
    details: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Split → `Row.details` of every row, where the task's rows have them."""


def read_splits(data: DataConfig, schema: RowSchema) -> Corpus:
    """Read, check and order the three splits.

    Raises:
        UserError: names every mistake with file and line, at most 50 of them.
    """
    mistakes: list[Mistake] = []
    sets = {} if data.hub is None else load_hub(data)
    rows: dict[str, list[Row]] = {}
    for split in SPLITS:
        if data.hub is not None:
            source, found = f"data.hub: {data.hub} ({split})", hub_rows(data, schema, split, sets)
        else:
            source = f"data.{split}: {getattr(data, split)}"
            found = file_rows(data, schema, split, mistakes)
        rows[split] = _checked(found, data, schema, source, mistakes)
        if split == "train":
            sound = not mistakes
    notes = _check_names(rows, schema, mistakes, sound)
    if mistakes:
        raise UserError(_shortened(mistakes))
    labels = schema.labels(sorted(_names(rows["train"], schema)))
    ordered = {split: _in_order(rows[split]) for split in SPLITS}
    splits = {split: _dataset(own) for split, own in ordered.items()}
    details = {split: tuple(row.details for row in own) for split, own in ordered.items()}
    return Corpus(splits, labels, notes, schema.layout, details)


def _checked(
    found: Found, data: DataConfig, schema: RowSchema, source: str, mistakes: list[Mistake]
) -> list[Row]:
    """The sound rows of a split; what is wrong with the others goes to `mistakes`, in order."""
    num_before = len(mistakes)
    rows: list[Row] = []
    names: set[str] = set()
    seen: dict[tuple[str, ...], Place] = {}
    try:
        for place, raw in found:
            names.update(raw)
            row, wrong = schema.read(place, raw, data)
            if row is not None:
                wrong += _check_twice(row, seen)
                rows.append(row)
            mistakes += wrong
    except UserError as error:
        mistakes += error.mistakes
        return rows
    if not rows and len(mistakes) == num_before:
        mistakes.append(Mistake(source, "has no rows."))
    elif rows:
        mistakes += _check_renamed(data.columns, names, source)
    return rows


def _check_renamed(columns: ColumnsConfig, names: set[str], source: str) -> list[Mistake]:
    """A column that may be absent has to be there once the config gives it a name."""
    given = ((columns.doc_id, "doc_id"), (columns.sent_id, "sent_id"))
    return [
        Mistake(source, f"has no column `{name}`, which data.columns.{own} names.")
        for name, own in given
        if name != own and name not in names
    ]


def _check_twice(row: Row, seen: dict[tuple[str, ...], Place]) -> list[Mistake]:
    key: tuple[str, ...]
    if row.unique_id is not None:
        key, what = (row.unique_id,), f"id {shown(row.unique_id)}"
    elif row.sent_id is not None:
        key = row.doc_id, str(row.sent_id)
        what = f"sentence {shown(row.sent_id)} of document {shown(row.doc_id)}"
    else:
        return []
    first = seen.setdefault(key, row.place)
    if first is row.place:
        return []
    return [Mistake(str(row.place), f"{what} was at {first} already.")]


def _names(rows: Iterable[Row], schema: RowSchema) -> dict[str, str]:
    """What has to be learned → where it is first."""
    found: dict[str, str] = {}
    for row in rows:
        for name, place in schema.label_names(row):
            found.setdefault(name, place)
    return found


def _check_names(
    rows: dict[str, list[Row]], schema: RowSchema, mistakes: list[Mistake], sound: bool
) -> tuple[str, ...]:
    """Add labels that can't be learned to `mistakes`; return notes on those not measured.

    Args:
        sound: no row of the training split is broken; one that is could have the label.
    """
    if not rows["train"]:
        return ()
    missing = "not in train" if sound else "in no sound row of train"
    found = {split: _names(rows[split], schema) for split in SPLITS}
    known = found["train"]
    evaluated = ("validation", "test")
    for name in dict.fromkeys(itertools.chain(*(found[split] for split in evaluated))):
        if name not in known:
            where = [split for split in evaluated if name in found[split]]
            what = f"label `{shown(name)}` is in {' and '.join(where)} but {missing}"
            hint = f"(labels of train: {shown(', '.join(sorted(known)) or 'none')})."
            mistakes.append(Mistake(found[where[0]][name], what, hint))
    return tuple(
        f"label {shown(name)} is not in the {split} split"
        for split in evaluated
        for name in known
        if name not in found[split]
    )


def _in_order(rows: Sequence[Row]) -> list[Row]:
    """Documents in order of appearance, their sentences by sent_id."""
    documents: dict[str, list[Row]] = {}
    for row in rows:
        documents.setdefault(row.doc_id, []).append(row)
    ordered: list[Row] = []
    for own in documents.values():
        numbers = [n for row in own if (n := _number(row.sent_id)) is not None]
        if len(numbers) == len(own):
            own = [row for _, _, row in sorted(zip(numbers, itertools.count(), own))]
        ordered += own
    return ordered


def _number(sent_id: Any) -> float | None:
    """A sent_id that is a number, or its text; None for others, which have no order."""
    if isinstance(sent_id, str) and sent_id.strip().isdecimal():
        return int(sent_id) if len(sent_id) <= _MAX_DIGITS else None
    return sent_id if isinstance(sent_id, (int, float)) else None


def _dataset(rows: Sequence[Row]) -> Dataset:
    from datasets import Dataset, Features, List, Value

    words = List(Value("string"))
    return Dataset.from_dict(
        {
            "doc_id": [row.doc_id for row in rows],
            "tokens": [row.tokens for row in rows],
            "tags": [row.tags for row in rows],
            "focus": [row.focus for row in rows],
        },
        features=Features(
            {"doc_id": Value("string"), "tokens": words, "tags": words, "focus": Value("int64")}
        ),
    )


def _shortened(mistakes: list[Mistake]) -> list[Mistake]:
    if len(mistakes) <= _MAX_SHOWN:
        return mistakes
    more = Mistake("…", f"and {len(mistakes) - _MAX_SHOWN} more mistakes.")
    return [*mistakes[:_MAX_SHOWN], more]
