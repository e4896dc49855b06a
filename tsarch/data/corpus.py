"""Reads labelled sentences from files or a hub data set, through `datasets`, and checks them.

Whatever the source, a split becomes a `Dataset` with the columns doc_id, tokens and tags, the
sentences of a document together and in order. All mistakes are collected before one is shown.
Raw rows come from `sources.py`.
"""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsarch.config import ColumnsConfig, DataConfig
from tsarch.data.sources import Found, Place, file_rows, hub_rows, load_hub, no_column
from tsarch.errors import Mistake, UserError

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
_MAX_SHOWN = 50


@dataclass(frozen=True)
class Corpus:
    """The three splits and their labels."""

    splits: dict[str, Dataset]
    """Split → `datasets.Dataset` with doc_id (str), tokens (list[str]), tags (list[str])."""
    labels: tuple[str, ...]
    """`O`, then B- and I- of every entity type of the training split."""
    notes: tuple[str, ...]
    """Remarks for the user."""


@dataclass(frozen=True)
class Row:
    """One sentence and where it came from."""

    place: Place
    doc_id: str
    sent_id: Any
    tokens: list[str]
    tags: list[str]


def read_splits(data: DataConfig) -> Corpus:
    """Read, check and order the three splits.

    Raises:
        UserError: names every mistake with file and line, at most 50 of them.
    """
    mistakes: list[Mistake] = []
    sets = {} if data.hub is None else load_hub(data)
    rows: dict[str, list[Row]] = {}
    for split in SPLITS:
        if data.hub is not None:
            source, found = f"data.hub: {data.hub} ({split})", hub_rows(data, split, sets)
        else:
            source = f"data.{split}: {getattr(data, split)}"
            found = file_rows(data, split, mistakes)
        rows[split] = _checked(found, data, source, mistakes)
        if split == "train":
            sound = not mistakes
    # Labels that only broken rows of the training split have would seem to be missing.
    notes = _check_types(rows, mistakes) if sound else ()
    if mistakes:
        raise UserError(_shortened(mistakes))
    types = sorted(_types(rows["train"]))
    labels = ("O", *(f"{prefix}-{name}" for name in types for prefix in "BI"))
    return Corpus({split: _dataset(_in_order(rows[split])) for split in SPLITS}, labels, notes)


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


def _checked(found: Found, data: DataConfig, source: str, mistakes: list[Mistake]) -> list[Row]:
    """The sound rows of a split; what is wrong with the others goes to `mistakes`, in order."""
    num_before = len(mistakes)
    rows: list[Row] = []
    names: set[str] = set()
    seen: dict[tuple[str, str], Place] = {}
    try:
        for place, raw in found:
            names.update(raw)
            row, wrong = _row(place, raw, data)
            if row is not None:
                wrong += _check_tags(row) + _check_twice(row, seen)
                rows.append(row)
            mistakes += wrong
    except UserError as error:
        mistakes += error.mistakes
        return rows
    if not rows and len(mistakes) == num_before:
        mistakes.append(Mistake(source, "has no sentences."))
    elif rows:
        mistakes += _check_renamed(data.columns, names, source)
    return rows


def _row(place: Place, raw: dict[str, Any], data: DataConfig) -> tuple[Row | None, list[Mistake]]:
    columns = data.columns
    wrong = [_check_list(place, raw, name) for name in (columns.tokens, columns.tags)]
    mistakes = [mistake for mistake in wrong if mistake is not None]
    if mistakes:
        return None, mistakes
    tokens, tags = raw[columns.tokens], raw[columns.tags]
    doc_id = raw.get(columns.doc_id)
    doc_id = str(place if doc_id is None else doc_id)
    try:
        "".join((doc_id, *tokens, *tags)).encode()
    except UnicodeEncodeError:
        return None, [Mistake(str(place), "has half a surrogate pair (\\ud800 … \\udfff).")]
    if len(tokens) != len(tags):
        what = f"has {len(tokens)} tokens but {len(tags)} tags."
        return None, [Mistake(str(place), what)]
    if not tokens:
        return None, [Mistake(str(place), "has no tokens.")]
    tags = iob1_to_iob2(tags) if data.tag_scheme == "iob1" else tags
    return Row(place, doc_id, raw.get(columns.sent_id), tokens, tags), []


def _check_list(place: Place, raw: dict[str, Any], name: str) -> Mistake | None:
    if name not in raw:
        return no_column(str(place), name, raw)
    values = raw[name]
    if not isinstance(values, list):
        return Mistake(str(place), f"`{name}` is {reprlib.repr(values)}, not a list of strings.")
    for word, value in enumerate(values):
        if not isinstance(value, str):
            what = f"`{name}` has {reprlib.repr(value)} as item {word + 1}, not a string."
            return Mistake(place.of_word(word), what)
    return None


def _check_renamed(columns: ColumnsConfig, names: set[str], source: str) -> list[Mistake]:
    """A column that may be absent has to be there once the config gives it a name."""
    given = ((columns.doc_id, "doc_id"), (columns.sent_id, "sent_id"))
    return [
        Mistake(source, f"has no column `{name}`, which data.columns.{own} names.")
        for name, own in given
        if name != own and name not in names
    ]


def _check_tags(row: Row) -> list[Mistake]:
    previous = "O"
    for word, tag in enumerate(row.tags):
        if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) < 3):
            what = f"tag {word + 1} is `{tag}`, not O, B-TYPE or I-TYPE."
            return [Mistake(row.place.of_word(word), what)]
        if tag.startswith("I-") and previous[1:] != tag[1:]:
            what = f"tag {word + 1} is `{tag}` after `{previous}`, which IOB2 doesn't allow."
            hint = "If the file is IOB1, set `data.tag_scheme: iob1`."
            return [Mistake(row.place.of_word(word), what, hint)]
        previous = tag
    return []


def _check_twice(row: Row, seen: dict[tuple[str, str], Place]) -> list[Mistake]:
    if row.sent_id is None:
        return []
    first = seen.setdefault((row.doc_id, str(row.sent_id)), row.place)
    if first is row.place:
        return []
    what = f"sentence {row.sent_id} of document {row.doc_id} was at {first} already."
    return [Mistake(str(row.place), what)]


def _types(rows: Iterable[Row]) -> dict[str, str]:
    """Entity type → where it is first."""
    found: dict[str, str] = {}
    for row in rows:
        for word, tag in enumerate(row.tags):
            if tag != "O" and tag[2:] not in found:
                found[tag[2:]] = row.place.of_word(word)
    return found


def _check_types(rows: dict[str, list[Row]], mistakes: list[Mistake]) -> tuple[str, ...]:
    """Add labels that can't be learned to `mistakes`; return notes on those not measured."""
    found = {split: _types(rows[split]) for split in SPLITS}
    known = found["train"]
    evaluated = ("validation", "test")
    for name in dict.fromkeys(itertools.chain(*(found[split] for split in evaluated))):
        if name not in known:
            where = [split for split in evaluated if name in found[split]]
            what = f"label `{name}` is in {' and '.join(where)} but not in train"
            hint = f"(labels of train: {', '.join(sorted(known)) or 'none'})."
            mistakes.append(Mistake(found[where[0]][name], what, hint))
    return tuple(
        f"label {name} is not in the {split} split"
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
        return int(sent_id)
    return sent_id if isinstance(sent_id, (int, float)) else None


def _dataset(rows: Sequence[Row]) -> Dataset:
    from datasets import Dataset, Features, List, Value

    words = List(Value("string"))
    return Dataset.from_dict(
        {
            "doc_id": [row.doc_id for row in rows],
            "tokens": [row.tokens for row in rows],
            "tags": [row.tags for row in rows],
        },
        features=Features({"doc_id": Value("string"), "tokens": words, "tags": words}),
    )


def _shortened(mistakes: list[Mistake]) -> list[Mistake]:
    if len(mistakes) <= _MAX_SHOWN:
        return mistakes
    more = Mistake("…", f"and {len(mistakes) - _MAX_SHOWN} more mistakes.")
    return [*mistakes[:_MAX_SHOWN], more]
