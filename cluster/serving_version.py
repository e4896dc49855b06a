"""A version of a run whose models are in replicas: this process prepares inputs for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tsarch.cluster.serving_replica import Ways
from tsarch.config import Mode
from tsarch.prediction.inputs import Input
from tsarch.prediction.loading import load_halves
from tsarch.prediction.trained_pair import Prepared
from tsarch.run.versions import current_folder, current_name
from tsarch.serving.served_pair import info_of
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
        self._name = current_name(home) or "original"
        self._files = _files(folder)
        self._pair = load_halves(folder, ())
        version = f"{self._name}@{self._pair.revision[:12]}"
        self.info = info_of(run, version, self._pair)
        self.usage = Usage()

    def is_current(self) -> bool:
        """Whether it is the run's current one still."""
        folder = current_folder(self._home)
        return folder == self.folder and _files(folder) == self._files

    def by_teacher(self, mode: Mode) -> bool:
        """Whether the teacher's replicas answer a mode by themselves."""
        return mode == "teacher" or mode in self.ways.by_pair

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


def _files(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells files from others, at a glance."""
    found = [(str(path), path.stat()) for path in sorted((folder / "model").rglob("*"))]
    return tuple((path, own.st_size, own.st_mtime_ns) for path, own in found)
