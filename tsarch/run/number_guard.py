"""Ends a run whose losses or gradients are not finite too often, and keeps the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tsarch.errors import RunFailedError
from tsarch.telling.step_table import StepRecord


class NumberGuard:
    """Counts bad steps in a row."""

    def __init__(
        self,
        limit: int,
        save_batch: Callable[[int, list[StepRecord]], Path],
        say: Callable[[str], None],
    ) -> None:
        """`save_batch` writes the batch of a step, with the rows from it on, to a file."""
        self._limit = limit
        self._save_batch = save_batch
        self._say = say
        self._rows: list[StepRecord] = []

    def check(self, row: StepRecord, num_bad: int) -> None:
        """A step is done; it ends `num_bad` bad ones in a row.

        Raises:
            RunFailedError: too many; names the file with the batch of the first.
        """
        if num_bad == 0:
            self._rows.clear()
            return
        self._rows.append(row)
        step = int(row["step"] or 0)
        if num_bad == 1:
            self._say(
                f"warning: step {step}: loss or gradient is not finite; its update is left out"
            )
        if num_bad > self._limit:
            first = step - num_bad + 1
            path = self._save_batch(first, self._rows)
            raise RunFailedError(
                f"loss or gradient was not finite in {num_bad} steps in a row, from step {first} "
                f"on (failure.max_bad_steps: {self._limit}). The batch of step {first}: {path}"
            )
