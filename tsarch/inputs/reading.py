"""How files are read for a pair: their format and columns, and which rows are inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tsarch.config import DataConfig
from tsarch.data.formats.shapes import Raw, nested
from tsarch.data.sources import column_names
from tsarch.inputs.rows import Input, takes_texts
from tsarch.tasks.registry import row_reader

if TYPE_CHECKING:
    from tsarch.data.row_reader import RowReader


@dataclass(frozen=True)
class Reading:
    """How files are read for a pair."""

    task: str
    columns: dict[str, str]
    """The pair's columns: own name → name."""
    data: DataConfig = field(default_factory=DataConfig)
    """Format, encoding, delimiter and columns of the files."""
    labelled: bool = False
    """Whether rows must have their labels, and keep them."""

    @cached_property
    def reader(self) -> RowReader[Any]:
        """Of the files' rows."""
        return row_reader(self.task, self.data, labelled=self.labelled)

    @cached_property
    def names(self) -> dict[str, str]:
        """The files' columns: own name → name."""
        return column_names(self.reader)

    @cached_property
    def takes_texts(self) -> bool:
        """Whether a plain text can be an input."""
        return takes_texts(self.task, self.reader)

    @cached_property
    def _is_same(self) -> bool:
        """Whether a row of a file is one of the pair's as it is."""
        return self.names == self.columns and not any("." in own for own in self.names.values())

    @cached_property
    def _needed(self) -> tuple[str, ...]:
        return tuple(self.reader.needed)

    def value(self, row: Raw) -> Input:
        """What is predicted of a row."""
        for own in self._needed:
            if own not in row and nested(row, own) is None:
                if self.takes_texts and isinstance(row.get("text"), str):
                    return str(row["text"])
                break
        if self._is_same:
            return row
        found = {self.columns[own]: _cell(row, name) for own, name in self.names.items()}
        told = {name: value for name, value in found.items() if value is not None}
        return {**row, **told} if self.names == self.columns else told or row


def _cell(row: Raw, name: str) -> Any:
    return row[name] if name in row else nested(row, name)
