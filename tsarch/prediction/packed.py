"""Rows to the contexts and windows that answer them: what doesn't fit is read in parts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tsarch.config import Mode
from tsarch.data.layouts import Layout, PackingSpec
from tsarch.data.row_reader import RowReader
from tsarch.data.target_layout import SourceTargetLayout
from tsarch.data.tokenizer import special_tokens
from tsarch.errors import UserError
from tsarch.inputs.rows import told
from tsarch.records import TokenizedSplit

_TRIES = 4
"""To find parts that fit by themselves."""


@dataclass(frozen=True)
class Packed:
    """Rows that are ready to be answered."""

    splits: tuple[TokenizedSplit, ...]
    """Each row is in one of them."""
    problems: dict[int, str]
    """Number of a row that no context has room for → why."""


class Layouts:
    """Makes contexts and windows of rows.

    A student that reads alone reads windows only. Of a row that doesn't fit into one, as far as
    the teacher's contexts are concerned, its window has the beginning alone (or what is around an
    entity); read without a teacher, the row is therefore cut into as many contexts as have one
    whole window each. Not where the teacher reads without what is asked: windows are then what
    there is room for around it.

    Args:
        contexts: for the teacher.
        windows: makes that for the student alone, when it is needed.
    """

    def __init__(self, contexts: Layout[Any], windows: Callable[[], Layout[Any]]) -> None:
        self._contexts = contexts
        self._windows = windows
        # Tokenizers of Rust change their settings while they work.
        self._tokenizing = threading.Lock()

    @classmethod
    def of(cls, reader: RowReader[Any], spec: PackingSpec, labels: Sequence[str]) -> Layouts:
        """Those of a task."""
        around = sum(map(len, special_tokens(spec.tokens.tokenizer)))
        shorter = min(spec.teacher_max_tokens, spec.student_max_tokens + around)
        narrow = replace(spec, teacher_max_tokens=shorter)
        return cls(reader.layout(spec, labels), lambda: reader.layout(narrow, labels))

    def pack(self, rows: Sequence[Any]) -> Packed:
        """Contexts and windows of rows, which are in order: one split, or none."""
        return self._packed(rows, self._contexts)

    @property
    def takes_parts(self) -> bool:
        """Whether long sources can be read in parts, see `in_parts`."""
        return isinstance(self._contexts, SourceTargetLayout) and self._contexts.takes_parts

    def in_parts(self, split: TokenizedSplit | None) -> Packed:
        """What `pack` made, with several rows in place of one whose source is too long."""
        if split is None:
            return Packed((), {})
        layout = self._contexts
        assert isinstance(layout, SourceTargetLayout)
        rows = list(split.rows)
        for tries in range(_TRIES):
            long = {place for cut in split.cuts if cut.of == "source" for place in cut.rows}
            if not long:
                break
            shorter = tries * layout.frame.max_source_tokens // _TRIES
            with self._tokenizing:
                parts = [
                    layout.in_parts(row, shorter) if place in long else [row]
                    for place, row in enumerate(rows)
                ]
                rows = [part for own in parts for part in own]
                split = layout.pack(rows)
        return Packed((split,), {})

    def as_read(self, split: TokenizedSplit | None, mode: Mode) -> Packed:
        """What `pack` made, as a mode reads it."""
        if split is None:
            return Packed((), {})
        if mode != "student_alone" or split.queries is not None:
            return Packed((split,), {})
        long = {place for cut in split.cuts if cut.is_read for place in cut.rows}
        if not long:
            return Packed((split,), {})
        rows = [
            [row for place, row in enumerate(split.rows) if (place in long) == own]
            for own in (False, True)
        ]
        fitting, rest = (
            self._packed(rows[0], self._contexts),
            self._packed(rows[1], self._windows()),
        )
        return Packed((*fitting.splits, *rest.splits), fitting.problems | rest.problems)

    def _packed(self, rows: Sequence[Any], layout: Layout[Any]) -> Packed:
        """The rows that a layout can take."""
        if not rows:
            return Packed((), {})
        with self._tokenizing:
            try:
                return Packed((layout.pack(rows),), {})
            except UserError:
                problems = dict(_wrong(rows, layout))
            fine = [row for row in rows if row.origin.place.number not in problems]
            return Packed((layout.pack(fine),) if fine else (), problems)


def _wrong(rows: Sequence[Any], layout: Layout[Any]) -> list[tuple[int, str]]:
    """Numbers of the rows that a layout can't take, and why."""
    found = []
    for row in rows:
        try:
            layout.pack([row])
        except UserError as error:
            found.append((row.origin.place.number, told(error)))
    return found
