"""How a task reads its own rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

from tsarch.config import Columns
from tsarch.data.formats.findings import Findings
from tsarch.data.formats.shapes import Shape
from tsarch.data.layouts import Layout, PackingSpec
from tsarch.data.rows import Place, Row
from tsarch.errors import Mistake

RowT = TypeVar("RowT", bound=Row)


class RowReader(Protocol[RowT]):
    """How a task's rows are read, checked, labelled and packed.

    A reader made with `labelled=False` doesn't look at the columns of labels, for rows that are
    only predicted: they come without, and so does the split that they are packed into.
    """

    @property
    def columns(self) -> Columns:
        """Names of the columns."""

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns that every row must have."""

    @property
    def optional(self) -> tuple[str, ...]:
        """Columns that may be absent."""

    @property
    def word_lists(self) -> tuple[str, ...]:
        """Columns that hold a list of words (in CSV: JSON, or words between spaces)."""

    @property
    def label_column(self) -> str:
        """Column whose class numbers become names."""

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Other layouts that rows may have."""

    def read(self, place: Place, raw: dict[str, Any]) -> tuple[RowT | None, list[Mistake]]:
        """A sound row, or None, and what is wrong with it."""

    def complete(self, rows: list[RowT], source: str, findings: Findings) -> list[RowT]:
        """The sound rows of a split, once what only all of them together tell is known; more
        mistakes, with their places, go to the findings."""

    def raw(self, row: RowT) -> dict[str, Any]:
        """What the row is read from again, under the task's own names of columns, without document
        and place in it."""

    def label_names(self, row: RowT) -> Iterable[tuple[str, str]]:
        """(name, place) of what the training split has to have for this row to be learned."""

    def labels(self, names: Iterable[str]) -> tuple[str, ...]:
        """Label ids in order, from the names of the training split."""

    def nothing_to_learn(self, names: Sequence[str]) -> str:
        """Why nothing can be learned of a training split with these names, in words behind its
        name; empty: something can."""

    def layout(self, spec: PackingSpec, labels: Sequence[str]) -> Layout[RowT]:
        """What makes contexts and windows of the rows."""


class PlainSplits:
    """The part of a `RowReader` whose rows have one layout and say all by themselves."""

    shapes: tuple[Shape, ...] = ()

    def complete(self, rows: list[RowT], source: str, findings: Findings) -> list[RowT]:
        """As they are."""
        return rows
