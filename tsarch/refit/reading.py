"""The new rows of a refit, and those that its run has read before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from typing import Any

from tsarch.blueprint import Blueprint
from tsarch.data.corpus import read_split, source_of
from tsarch.data.row_digest import rows_digest
from tsarch.data.rows import Row
from tsarch.errors import Mistake, UserError
from tsarch.inputs.unlabelled import KEY, read_unlabelled
from tsarch.model_folder import load_task
from tsarch.refit.lineage import Lineage
from tsarch.refit.mixing import OldRows
from tsarch.refit.rows import Document, PlainRows, documents_of
from tsarch.refit.settings import Sources
from tsarch.tasks.registry import row_reader

NEW_TRAIN, NEW_VALIDATION, HELD_OUT = "new-train.jsonl", "new-validation.jsonl", "held-out.jsonl"
"""Files of a refit's folder, beside those of the splits that it trains and is measured on."""


class NewDataError(UserError):
    """New rows that can't be used; the run can."""


@dataclass(frozen=True)
class NewRows:
    """What is new."""

    documents: list[Document]
    source: str
    fingerprint: str
    """Of what the rows say, wherever they lie and in whatever format."""
    notes: tuple[str, ...]


def run_labels(lineage: Lineage) -> tuple[str, ...]:
    """Labels that a run knows."""
    return load_task(lineage.folder(lineage.current) / "model").labels


def read_new(new: Blueprint, labels: Sequence[str], name: str) -> NewRows:
    """Read the new rows, for a version called `name`.

    Raises:
        UserError: they hold mistakes, or labels that the run doesn't know.
    """
    own = new.data.train
    source = " and ".join(own) if isinstance(own, list) else str(own)
    rows, notes = _rows(new, "train", labels)
    documents = documents_of(rows, f"{name}-")
    return NewRows(documents, source, rows_digest(rows), notes)


def read_old(
    old: Blueprint, lineage: Lineage, plain: PlainRows, replays: bool
) -> tuple[OldRows, list[str]]:
    """Read what the run has read before, and remarks on it; `replays`: its training rows too.

    Raises:
        UserError: it isn't there any more.
    """
    labels = run_labels(lineage)
    notes: list[str] = []
    splits: dict[str, list[Document]] = {}
    for split in ("test", "validation", "train"):
        if split == "test" or replays or _is_there(old, split):
            _check_there(old, split)
            splits[split] = documents_of(_rows(old, split, labels)[0], f"{split}-")
        else:
            notes.append(f"{source_of(split, old.data)} is not there: the refit goes without")
    train, validation = splits.get("train", []), splits.get("validation", [])
    held, trained = set[str](), plain.keys(row for own in train for row in own.rows)
    ancestors = {own.version for own in lineage.ancestors(lineage.current)}
    for record in lineage.records():
        folder = lineage.refit_folder(record.version)
        held |= plain.keys(plain.read(folder / HELD_OUT))
        if record.version in ancestors:
            rows = plain.read(folder / NEW_TRAIN)
            trained |= plain.keys(rows)
            train = [*train, *documents_of(rows, f"{record.version}-")]
            more = documents_of(plain.read(folder / NEW_VALIDATION), f"{record.version}-")
            validation = [*validation, *more]
    return OldRows(
        train if replays else (),
        validation,
        splits["test"],
        frozenset(held),
        frozenset(trained),
    ), notes


def read_beside(found: Sources, is_given: bool) -> list[Document]:
    """The text without labels that the run learns of besides; none: it learns of none.

    Args:
        is_given: whether it is named anew, and is read as the new rows are; else as the run read
            it.

    Raises:
        UserError: it isn't there any more, or holds mistakes.
    """
    named, task = found.new.data.unlabelled, found.new.task.name
    if named is None:
        return []
    data = (found.new if is_given else found.old).data
    reader: Any = row_reader(task, data, labelled=False)
    try:
        rows = read_unlabelled(named, task, reader, data).rows
    except UserError as error:
        hint = f"Give its place now: --set {KEY}=FILE; or go on without it: --set {KEY}=null."
        told = [
            Mistake(own.where, own.what, f"{own.hint} {hint}".strip()) for own in error.mistakes
        ]
        raise UserError(told) from None
    return documents_of(rows, "unlabelled-")


def _rows(
    blueprint: Blueprint, split: str, labels: Sequence[str]
) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    reader: Any = row_reader(blueprint.task.name, blueprint.data)
    return read_split(split, blueprint.data, reader, labels)


def _is_there(old: Blueprint, split: str) -> bool:
    """Whether the files of a split are still where the run had them."""
    named = getattr(old.data, split)
    files = named if isinstance(named, list) else [named]
    there = [own is not None and (os.path.exists(own) or bool(glob(own))) for own in files]
    return old.data.hub is not None or all(there)


def _check_there(old: Blueprint, split: str) -> None:
    """Whether they are.

    Raises:
        UserError: they aren't.
    """
    if not _is_there(old, split):
        other = "" if split == "test" else ", or go on without old data: --replay 0"
        hint = f"Give its place now: --set data.{split}=FILE{other}."
        raise UserError.single(source_of(split, old.data), "is not there.", hint)
