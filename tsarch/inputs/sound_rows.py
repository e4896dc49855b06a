"""Inputs as rows of the task, and what keeps some from being read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tsarch.data.corpus import read_rows
from tsarch.data.row_reader import RowReader
from tsarch.errors import UserError
from tsarch.inputs.rows import Inputs, told


def sound_rows(own: Inputs, reader: RowReader[Any]) -> tuple[Inputs, tuple[Any, ...]]:
    """The inputs that can be read, and their rows."""
    try:
        return own, _rows(own.rows, reader)
    except UserError:
        own = own.without(dict(_wrong(own, reader)))
        return own, _rows(own.rows, reader)


def _rows(raw: Sequence[dict[str, Any]], reader: RowReader[Any]) -> tuple[Any, ...]:
    """Rows as the task reads them. Who asks twice is answered twice, whatever ids rows have."""
    return read_rows(raw, reader, may_repeat=True) if raw else ()


def _wrong(own: Inputs, reader: RowReader[Any]) -> Iterator[tuple[int, str]]:
    """Inputs with rows that can't be read, and why."""
    for row, number in zip(own.rows, own.owners, strict=True):
        try:
            _rows([row], reader)
        except UserError as error:
            yield number, told(error)
