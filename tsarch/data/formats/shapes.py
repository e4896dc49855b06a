"""Rows of other layouts, such as SQuAD's or Label Studio's, made into the task's own.

A task names the layouts that its rows may have (`RowReader.shapes`). Which one a file has says
`data.format`, or its first rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tsarch.data.formats.findings import Findings, Found
from tsarch.data.rows import Place
from tsarch.errors import UserError

_LOOKED_AT = 100
Raw = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A row in another layout."""

    place: Place
    raw: Raw
    names: Mapping[str, str]
    """The task's own name of a column → its name."""
    labelled: bool
    """Whether labels are wanted."""
    findings: Findings

    def row(self, **values: Any) -> Raw:
        """A row of the task: values by its own names of columns; those that are None left out."""
        return {self.names[own]: value for own, value in values.items() if value is not None}


@dataclass(frozen=True)
class Shape:
    """A layout."""

    name: str
    """For `data.format`."""
    title: str
    """For the user."""
    fits: Callable[[Raw, Mapping[str, str]], bool]
    """Whether a row has this layout; takes the names of the columns, too."""
    rows: Callable[[Item], Iterator[tuple[Place, Raw]]]
    """The task's rows of one."""
    text: Callable[[Item], str | None] | None = None
    """The plain text that one is about, where it is one; None: it has none (a mistake, or it is
    left out)."""


def with_shape(
    found: Found,
    shapes: tuple[Shape, ...],
    wanted: str,
    names: Mapping[str, str],
    labelled: bool,
    findings: Findings,
) -> Found:
    """The rows as they are, or made from the layout that they have.

    Args:
        wanted: `data.format`.

    Raises:
        UserError: the task has no rows of the layout that is wanted.
    """
    start = list(itertools.islice(found, _LOOKED_AT))
    rows = itertools.chain(start, found)
    shape = fitting([raw for _, raw in start], shapes, wanted, names)
    if shape is None:
        yield from rows
        return
    findings.note(f"read as {shape.title}")
    for place, raw in rows:
        made = shape.rows(Item(place, raw, names, labelled, findings))
        for part, (own, row) in enumerate(made):
            yield replace(own, part=(*place.part, part)), row


def fitting(
    rows: list[Raw], shapes: tuple[Shape, ...], wanted: str, names: Mapping[str, str]
) -> Shape | None:
    """The layout that rows have; None: the task's own."""
    if wanted in SHAPE_NAMES:
        shape = next((own for own in shapes if own.name == wanted), None)
        if shape is None:
            known = ", ".join(own.name for own in shapes) or "none"
            what = "is a layout that rows of this task don't have."
            raise UserError.single(f"data.format: {wanted}", what, f"Those it knows: {known}.")
        return shape
    return next((own for own in shapes if any(own.fits(raw, names) for raw in rows)), None)


def with_nested(found: Found, names: list[str]) -> Found:
    """Rows with the columns whose names have dots, such as `translation.en`: what lies inside."""
    dotted = [name for name in names if "." in name]
    for place, raw in found:
        for name in dotted:
            if name not in raw and (value := nested(raw, name)) is not None:
                raw[name] = value
        yield place, raw


def plain_columns(raw: Raw) -> Raw:
    """The columns of a row that hold a text, a number or nothing: not what a layout is made of."""
    return {n: v for n, v in raw.items() if v is None or isinstance(v, str | int | float)}


def nested(raw: Raw, name: str) -> Any:
    """What lies inside objects (by key) and lists (by number, from 0); None: nothing."""
    value: Any = raw
    for part in name.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


SHAPE_NAMES = (
    "doccano",
    "prodigy",
    "label_studio",
    "squad",
    "tacred",
    "docred",
    "pairs",
    "opennre",
    "marked",
    "messages",
    "sharegpt",
    "turns",
    "multiwoz",
    "dialog",
)
