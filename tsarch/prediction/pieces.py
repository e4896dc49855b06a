"""Inputs of files in pieces that are answered together, some of them read ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import TypeVar

from tsarch.inputs.files import FileInput, InputFile
from tsarch.tasks.registry import is_generative

Item = TypeVar("Item")

INPUTS = 1024
"""Inputs of a piece."""
_TEXTS = 64
"""The same where answers are texts, which take long."""
_CHARACTERS = 2**20
"""A piece ends, too, where its inputs have so many."""
_LONGEST = 32
"""Documents stay whole up to so many pieces."""
_WAIT_S = 0.2


@dataclass(frozen=True)
class Piece:
    """Inputs that are answered together."""

    inputs: tuple[FileInput, ...]
    begun_bytes: int
    """Of all files, that were used before it."""
    bytes_read: int
    """And with it."""
    notes: tuple[str, ...] = ()
    """Remarks so far on how its file is read."""


@dataclass(frozen=True)
class Limits:
    """When a piece ends."""

    inputs: int
    characters: int = _CHARACTERS

    @classmethod
    def of(cls, task: str) -> Limits:
        """For a task."""
        return cls(min(_TEXTS, INPUTS) if is_generative(task) else INPUTS)


def pieces(files: Sequence[InputFile], limits: Limits, skipped: int = 0) -> Iterator[Piece]:
    """All inputs but the first `skipped`. A document stays whole (unless it is as long as many
    pieces), and no piece has inputs of two files."""
    before = 0
    for file in files:
        kept: list[FileInput] = []
        begun = size = 0
        for own in file:
            if skipped > 0:
                skipped -= 1
                begun = file.position
                continue
            if kept and _ends(kept, size, own, limits):
                position = file.position
                yield _piece(file, kept, before, begun, position)
                begun, kept, size = position, [], 0
            kept.append(own)
            size += _characters(own)
        end = file.size or file.position
        if kept or (not begun and file.findings.notes):  # an empty file has something to say
            yield _piece(file, kept, before, begun, end)
        before += end


def _piece(
    file: InputFile, kept: Sequence[FileInput], before: int, begun: int, position: int
) -> Piece:
    return Piece(tuple(kept), before + begun, before + position, file.findings.notes)


def _ends(kept: Sequence[FileInput], size: int, following: FileInput, limits: Limits) -> bool:
    if len(kept) < limits.inputs and size < limits.characters:
        return False
    document = following.document
    if document is None or document != kept[-1].document:
        return True
    return len(kept) >= _LONGEST * limits.inputs or size >= _LONGEST * limits.characters


def _characters(own: FileInput) -> int:
    """Of its texts; of lists as many as they have items."""
    return sum(len(value) for value in own.row.values() if isinstance(value, str | list | dict))


def read_ahead(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """The items, while a thread reads the next ones."""
    queue: Queue[Item | BaseException | None] = Queue(depth)
    is_over = threading.Event()

    def put(item: Item | BaseException | None) -> bool:
        while not is_over.is_set():
            try:
                queue.put(item, timeout=_WAIT_S)
                return True
            except Full:
                continue
        return False

    def fill() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(None)
        except BaseException as error:  # told where the items are wanted
            put(error)

    thread = threading.Thread(target=fill, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = queue.get(timeout=_WAIT_S)  # a wait that a signal can interrupt
            except Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        is_over.set()
        thread.join(timeout=5 * _WAIT_S)
