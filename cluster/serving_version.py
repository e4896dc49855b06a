"""A version of a run whose models are in replicas: this process prepares inputs for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tsarch.cluster.serving_replica import Ways
from tsarch.config import Mode
from tsarch.inputs.rows import Input
from tsarch.prediction.loading import load_halves
from tsarch.prediction.prepared import Prepared
from tsarch.prediction.unread import OnUnread
from tsarch.run.versions import current_folder, current_name
from tsarch.serving.served_pair import check_unread, info_of
from tsarch.serving.swapping import marks, version_name
from tsarch.serving.usage import Usage


class Version:
    """A version that is served.

    Args:
        run: the run's name.
        home: its folder.
        folder: of the version.
    """

    def __init__(self, run: str, home: Path, folder: Path, ways: Ways) -> None:
        self.folder = folder
        self.ways = ways
        self._home = home
        name = current_name(home)
        self._marks = marks(folder)
        self._pair = load_halves(folder, ())
        self.revision = self._pair.revision
        self.info = info_of(run, version_name(name, self.revision), self._pair)
        self.usage = Usage()

    def is_current(self) -> bool:
        """Whether it is the run's current one still."""
        folder = current_folder(self._home)
        return folder == self.folder and marks(folder) == self._marks

    def by_teacher(self, mode: Mode) -> bool:
        """Whether the teacher's replicas answer a mode by themselves."""
        return mode == "teacher" or mode in self.ways.by_pair

    def check(self, on_unread: OnUnread) -> None:
        """Raises `ServiceError` if this can't be done about what isn't read."""
        check_unread(self._pair, on_unread)

    def prepare(self, inputs: Sequence[Input]) -> list[tuple[list[int], Prepared]]:
        """Inputs that are read together, by their numbers: documents apart, so that each meets the
        replica that knows it."""
        documents: dict[Any, list[int]] = {}
        for number, own in enumerate(inputs):
            documents.setdefault(self._document(number, own), []).append(number)
        return [
            (numbers, self._pair.prepare([inputs[number] for number in numbers]))
            for numbers in documents.values()
        ]

    def _document(self, number: int, own: Input) -> Any:
        """What an input is a part of; by itself, its number."""
        column = self._pair.columns.get("doc_id")
        value = own.get(column) if column is not None and isinstance(own, dict) else None
        return number if value is None or value == "" else str(value)
