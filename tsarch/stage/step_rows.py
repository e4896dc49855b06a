"""Rows of the tied table that a stage looks up, kept from a step's first forward to its update."""

from __future__ import annotations

from tsarch.parallel.tied_embedding import TiedEmbedding, TouchedRows
from tsarch.records import IntArray


class StepRows:
    """One copy of the touched rows per step: its micro-batches add to the same gradient."""

    def __init__(self, tied: TiedEmbedding) -> None:
        self._tied = tied
        self._rows: dict[int, TouchedRows] = {}

    def get(self, step: int, token_ids: IntArray, update: bool) -> TouchedRows:
        """The rows of a step; without an update to come nothing is kept."""
        if not update:
            return self._tied.touch(token_ids, requires_grad=False)
        if step not in self._rows:
            self._rows[step] = self._tied.touch(token_ids, requires_grad=True)
        return self._rows[step]

    def take(self, step: int) -> TouchedRows:
        """The rows with the step's gradient, once."""
        return self._rows.pop(step)

    def forget(self, step: int) -> None:
        """Drop the rows of a step if nobody has taken them (the table is frozen)."""
        self._rows.pop(step, None)
