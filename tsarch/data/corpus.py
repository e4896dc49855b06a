"""Reads a task's rows from files or a hub data set, through `datasets`, and checks them.

Whatever the source, a split becomes rows of the task's own type, those of a document together and
in order. All mistakes are collected before one is shown. Raw rows come from `sources.py`; what they
mean says the task's `RowReader`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from tsarch.config import DataConfig
from tsarch.data.formats.findings import Findings, Found
from tsarch.data.formats.tables import hub_rows, hub_split, load_hub
from tsarch.data.held_out import held_out
from tsarch.data.mistakes import in_order, of_several_files, of_whole_file
from tsarch.data.names import check_alike
from tsarch.data.row_reader import RowReader, RowT
from tsarch.data.rows import Origin, Place, shown
from tsarch.data.sources import file_rows
from tsarch.errors import Mistake, UserError

SPLITS = ("train", "validation", "test")
_FEW_ABSENT = 5
_CHECK = "Are its labels in another column (data.columns), or is it a part of the data only?"
_MAX_DIGITS = 100  # Python refuses to read numbers of thousands


@dataclass(frozen=True)
class Corpus(Generic[RowT]):
    """The three splits and their labels."""

    rows: dict[str, tuple[RowT, ...]]
    """Split → its rows; of one that is streamed none."""
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    """Remarks for the user."""


def read_splits(
    data: DataConfig,
    reader: RowReader[RowT],
    labels: Sequence[str] | None = None,
    streamed: Callable[[], Mapping[str, str]] | None = None,
) -> Corpus[RowT]:
    """Read, check and order the three splits.

    Args:
        labels: those of a trained model that goes on; None: those of the training split.
        streamed: reads the training split elsewhere, once the others are sound, and gives what has
            to be learned → where it is first; no rows of it are among those here.

    Raises:
        UserError: names the mistakes with file and line.
    """
    findings = Findings()
    sets = {} if data.hub is None else load_hub(data)
    rows: dict[str, list[RowT]] = {}
    sound = True
    for split in SPLITS:
        if split == "train" and streamed is not None:
            continue
        if split == "validation" and _lacks_validation(data, sets):
            rows |= _with_validation(rows["train"], data, reader, findings)
            continue
        findings.split = split
        found = _split_rows(split, data, reader, sets, findings)
        rows[split] = checked(found, reader, source_of(split, data), findings)
        if split == "train":
            sound = not findings.mistakes
    learned = {split: names_of(own, reader) for split, own in rows.items()}
    if streamed is not None:
        raise_mistakes(findings)
        learned["train"] = dict(streamed())
    names = sorted(learned["train"])
    notes: tuple[str, ...] = ()
    if labels is not None:
        for split in SPLITS:
            findings.mistakes += unknown_names(learned[split], reader, labels)
    elif sound and (nothing := reader.nothing_to_learn(names)):
        what = f"{nothing}: there is nothing to learn."
        findings.mistakes.append(Mistake(source_of("train", data), what, _CHECK))
    elif streamed is not None or rows["train"]:
        notes = _check_names(learned, findings.mistakes, sound)
    raise_mistakes(findings)
    ordered = {split: tuple(by_document(own)) for split, own in rows.items()}
    known = reader.labels(names) if labels is None else tuple(labels)
    return Corpus(ordered, known, (*findings.notes, *notes))


def read_split(
    split: str, data: DataConfig, reader: RowReader[RowT], labels: Sequence[str]
) -> tuple[tuple[RowT, ...], tuple[str, ...]]:
    """Read, check and order one split for a model that knows `labels`; its rows, and remarks.

    Raises:
        UserError: names the mistakes with file and line.
    """
    findings = Findings()
    sets = {} if data.hub is None else load_hub(data)
    is_part = split in ("train", "validation") and _lacks_validation(data, sets)
    findings.split = "train" if is_part else split
    found = _split_rows(findings.split, data, reader, sets, findings)
    rows = checked(found, reader, source_of(split, data), findings)
    if is_part:
        rows = _with_validation(rows, data, reader, findings)[split]
    findings.mistakes += unknown_names(names_of(rows, reader), reader, labels)
    return _sound(rows, findings), tuple(findings.notes)


def unknown_names(
    names: Mapping[str, str], reader: RowReader[Any], labels: Sequence[str]
) -> list[Mistake]:
    """Labels (`names_of`) that a trained model doesn't know."""
    what = "label `{}` is not among those that the run was trained with:"
    return [
        Mistake(place, what.format(shown(name)), f"{shown(', '.join(labels))}.")
        for name, place in names.items()
        if not set(reader.labels([name])) <= set(labels)
    ]


def _lacks_validation(data: DataConfig, sets: Mapping[str, Any]) -> bool:
    """Whether a hub data set has a training split, but none for validation."""
    names = (hub_split(split, sets) for split in ("train", "validation"))
    return data.hub is not None and [name is None for name in names] == [False, True]


def _with_validation(
    rows: Sequence[RowT], data: DataConfig, reader: RowReader[RowT], findings: Findings
) -> dict[str, list[RowT]]:
    """A part of the training split as the validation split that there is none of."""
    if findings.mistakes:
        return {"train": list(rows), "validation": list(rows)}  # they are said first
    splits = held_out(rows, reader, data.validation_share, f"data.hub: {data.hub}")
    findings.split = "validation"
    findings.note(
        f"data.hub has no such split: {len(splits['validation']):,} of the {len(rows):,} training "
        "rows are taken for it, the same at every run (data.validation_share)"
    )
    return splits


def source_of(split: str, data: DataConfig) -> str:
    """What the rows of a split are read from, for messages."""
    if data.hub is not None:
        return f"data.hub: {data.hub} ({split})"
    return f"data.{split}: {getattr(data, split)}"


def _split_rows(
    split: str,
    data: DataConfig,
    reader: RowReader[RowT],
    sets: dict[str, Any],
    findings: Findings,
) -> Found:
    """Raw rows of a split; `sets`: those of `data.hub`."""
    if data.hub is not None:
        return hub_rows(data, reader, split, sets, findings)
    return file_rows(getattr(data, split), f"data.{split}", data, reader, findings)


def read_file(path: str, data: DataConfig, reader: RowReader[RowT]) -> tuple[RowT, ...]:
    """Read, check and order the rows of one file, in the formats and with the columns of `data`.

    Raises:
        UserError: names the mistakes with file and line.
    """
    findings = Findings()
    found = file_rows(path, "input", data, reader, findings)
    return _sound(checked(found, reader, f"input: {path}", findings), findings)


def read_rows(
    raw: Iterable[Mapping[str, Any]],
    reader: RowReader[RowT],
    source: str = "input",
    may_repeat: bool = False,
) -> tuple[RowT, ...]:
    """Check and order rows that are at hand, column → value; `source` names them in messages.

    Args:
        may_repeat: whether rows may have the same id, or be the same sentence of a document.

    Raises:
        UserError: names the mistakes with the row's number.
    """
    findings = Findings()
    found = ((Place(source, n, unit="row "), dict(own)) for n, own in enumerate(raw, 1))
    return _sound(checked(found, reader, source, findings, may_repeat), findings)


def _sound(rows: list[RowT], findings: Findings) -> tuple[RowT, ...]:
    """The rows in order.

    Raises:
        UserError: there are mistakes.
    """
    raise_mistakes(findings)
    return tuple(by_document(rows))


def raise_mistakes(findings: Findings) -> None:
    """Raise a `UserError` if there are mistakes."""
    if findings.mistakes:
        raise UserError(of_several_files(findings.mistakes))


def checked(
    found: Found,
    reader: RowReader[RowT],
    source: str,
    findings: Findings,
    may_repeat: bool = False,
) -> list[RowT]:
    """The sound rows of a split; what is wrong with the others goes to the mistakes, in order."""
    before, findings.mistakes = findings.mistakes, []
    try:
        rows = _read(found, reader, source, findings, may_repeat)
    except UserError as error:
        findings.mistakes += error.mistakes
        rows = []
    failed = not rows and bool(findings.mistakes)
    own = in_order(findings.mistakes)
    findings.mistakes = before + (of_whole_file(own, findings.guess()) if failed else own)
    findings.guess = lambda: None
    return rows


def _read(
    found: Found, reader: RowReader[RowT], source: str, findings: Findings, may_repeat: bool
) -> list[RowT]:
    """The sound rows of a split.

    Raises:
        UserError: the source can't be read any further.
    """
    rows: list[RowT] = []
    names: set[str] = set()
    seen: dict[tuple[str, ...], Place] = {}
    for place, raw in found:
        names.update(raw)
        row, wrong = reader.read(place, raw)
        if row is not None:
            wrong += [] if may_repeat else check_twice(row.origin, seen)
            rows.append(row)
        findings.mistakes += wrong
    if not rows and not findings.mistakes:
        findings.mistake(source, "has no rows.")
    elif rows:
        rows = reader.complete(rows, source, findings)
        findings.mistakes += _check_renamed(reader, names, source)
    return rows


def _check_renamed(reader: RowReader[RowT], names: set[str], source: str) -> list[Mistake]:
    """A column that may be absent has to be there once the config gives it a name."""
    return [
        Mistake(source, f"has no column `{name}`, which data.columns.{own} names.")
        for own, name in reader.columns.model_dump().items()
        if name in reader.optional and name != own and name not in names
    ]


def check_twice(origin: Origin, seen: dict[tuple[str, ...], Place]) -> list[Mistake]:
    """That an id, or a sentence of a document, is among the `seen` already; adds it."""
    key: tuple[str, ...]
    if origin.unique_id is not None:
        key, what = (origin.unique_id,), f"id {shown(origin.unique_id)}"
    elif origin.sent_id is not None:
        key = origin.doc_id, str(origin.sent_id)
        what = f"sentence {shown(origin.sent_id)} of document {shown(origin.doc_id)}"
    else:
        return []
    first = seen.setdefault(key, origin.place)
    if first is origin.place:
        return []
    return [Mistake(str(origin.place), f"{what} was at {first} already.")]


def names_of(rows: Iterable[RowT], reader: RowReader[RowT]) -> dict[str, str]:
    """What has to be learned → where it is first."""
    found: dict[str, str] = {}
    for row in rows:
        for name, place in reader.label_names(row):
            found.setdefault(name, place)
    return found


def _check_names(
    found: Mapping[str, Mapping[str, str]], mistakes: list[Mistake], sound: bool
) -> tuple[str, ...]:
    """Add labels that can't be learned to `mistakes`; return notes on those not measured.

    Args:
        found: `names_of` each split.
        sound: no row of the training split is broken; one that is could have the label.
    """
    missing = "not in train" if sound else "in no sound row of train"
    known = found["train"]
    if alike := check_alike({**known, **found["test"], **found["validation"], **known}):
        mistakes += alike
        return ()
    evaluated = ("validation", "test")
    for name in dict.fromkeys(itertools.chain(*(found[split] for split in evaluated))):
        if name not in known:
            where = [split for split in evaluated if name in found[split]]
            what = f"label `{shown(name)}` is in {' and '.join(where)} but {missing}"
            hint = f"(labels of train: {shown(', '.join(sorted(known)) or 'none')})."
            mistakes.append(Mistake(found[where[0]][name], what, hint))
    return tuple(itertools.chain(*(_absent(split, known, found[split]) for split in evaluated)))


def _absent(split: str, known: Iterable[str], found: Container[str]) -> list[str]:
    """Notes on the labels that an evaluated split lacks: one each, or one if they are many."""
    absent = [name for name in known if name not in found]
    if len(absent) <= _FEW_ABSENT:
        return [f"label {shown(name)} is not in the {split} split" for name in absent]
    some = shown(", ".join(absent[:_FEW_ABSENT]))
    return [f"{len(absent)} labels are not in the {split} split: {some}, …"]


def by_document(rows: Sequence[RowT]) -> list[RowT]:
    """Documents in order of appearance, their sentences by sent_id."""
    documents: dict[str, list[RowT]] = {}
    for row in rows:
        documents.setdefault(row.origin.doc_id, []).append(row)
    ordered: list[RowT] = []
    for own in documents.values():
        numbers = [n for row in own if (n := _number(row.origin.sent_id)) is not None]
        if len(numbers) == len(own):
            own = [row for _, _, row in sorted(zip(numbers, itertools.count(), own))]
        ordered += own
    return ordered


def _number(sent_id: Any) -> float | None:
    """A sent_id that is a number, or its text; None for others, which have no order."""
    if isinstance(sent_id, str) and sent_id.strip().isdecimal():
        return int(sent_id) if len(sent_id) <= _MAX_DIGITS else None
    return sent_id if isinstance(sent_id, (int, float)) else None
