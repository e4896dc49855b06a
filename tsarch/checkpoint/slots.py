"""Places in memory for cuts: files without a name, which any process of this host can open by a
path, and which last as long as one of them holds them. So a cut outlives the rank that took it.
(No torch: the driver makes and reads them.)

A slot begins with a header; the tensors follow from `DATA` on, and an index of them, as JSON, after
the last. It is whole once its header says so, which is written last.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NUM_SLOTS = 4
"""Three in turn, and one more while files are being written from an older one. A slot takes memory
from its first cut on."""
DATA = 4096
"""Where the tensors begin: a page on."""
_HEADER = struct.Struct("<8sqqqq")
_MAGIC = b"tsarch-1"


@dataclass(frozen=True)
class Header:
    """What a slot holds."""

    step: int
    """Of the cut."""
    is_whole: bool
    index_start: int
    index_bytes: int


class HeldSlots:
    """The slots of one rank, held open by this process."""

    def __init__(self, files: Sequence[int]) -> None:
        """`files`: open file descriptors, which are closed with `close`."""
        self._files = list(files)

    @classmethod
    def make(cls, number: int = NUM_SLOTS) -> HeldSlots:
        """New ones, empty."""
        return cls([memory_file() for _ in range(number)])

    @classmethod
    def opened(cls, paths: Sequence[str]) -> HeldSlots:
        """Those at `paths`, which another process holds.

        Raises:
            OSError: it holds them no longer.
        """
        files: list[int] = []
        try:
            for path in paths:
                files.append(os.open(path, os.O_RDWR))
        except OSError:
            cls(files).close()
            raise
        return cls(files)

    @property
    def files(self) -> tuple[int, ...]:
        """Descriptors, open until `close`."""
        return tuple(self._files)

    @property
    def paths(self) -> tuple[str, ...]:
        """Where processes of this host can open them, as long as this one holds them."""
        return tuple(f"/proc/{os.getpid()}/fd/{file}" for file in self._files)

    def cuts(self) -> dict[int, str]:
        """Step → path of the slot, of all whole cuts."""
        found = {}
        for file, path in zip(self._files, self.paths, strict=True):
            header = read_header(file)
            if header is not None and header.is_whole:
                found[header.step] = path
        return found

    def read(self, step: int, start: int, most_bytes: int) -> bytes:
        """A part of a whole cut as it is: so many bytes from `start` on, fewer where it ends.

        Raises:
            LookupError: it isn't here any more.
        """
        for file in self._files:
            header = read_header(file)
            if header is not None and header.is_whole and header.step == step:
                end = header.index_start + header.index_bytes
                return _read(file, start, min(start + most_bytes, end))
        raise LookupError(f"the cut of step {step} is not here")

    def incoming(self, step: int) -> IncomingCut:
        """The place of a cut that comes from elsewhere: that of the oldest here."""
        return IncomingCut(min(self._files, key=_age), step)

    def forget_after(self, step: int) -> None:
        """The run has gone back to the cut of `step`: those after it will be taken again."""
        for file in self._files:
            if _age(file) > step:
                write_header(file, Header(-1, False, 0, 0))

    def clear(self) -> None:
        """Cuts that are there are of another run."""
        self.forget_after(-1)

    def close(self) -> None:
        """Hold them no longer."""
        while self._files:
            os.close(self._files.pop())


class IncomingCut:
    """A cut that comes in parts, as `HeldSlots.read` gives them elsewhere."""

    def __init__(self, file: int, step: int) -> None:
        self._file = file
        self._header: Header | None = None
        self.end = 0
        """Bytes that are here."""
        write_header(file, Header(step, False, 0, 0))

    @property
    def is_whole(self) -> bool:
        """Whether all parts are here."""
        header = self._header
        return header is not None and self.end == header.index_start + header.index_bytes

    def put(self, raw: memoryview) -> None:
        """Take in the next part. The header, which is in the first, is written last."""
        start = 0
        if self._header is None:
            start = _HEADER.size
            self._header = _parse_header(raw[:start])
        while start < len(raw):
            start += os.pwrite(self._file, raw[start:], self.end + start)
        self.end += len(raw)
        if self.is_whole:
            assert self._header is not None
            write_header(self._file, self._header)


def _age(file: int) -> int:
    """Step of the cut that is there; −1: none."""
    header = read_header(file)
    return header.step if header is not None and header.is_whole else -1


def _read(file: int, start: int, stop: int) -> bytes:
    blocks = []
    while start < stop:
        blocks.append(os.pread(file, stop - start, start))
        start += len(blocks[-1])
    return b"".join(blocks)


def memory_file() -> int:
    """An empty file in memory; its descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("tsarch-cut", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # not Linux: on a disk then, and for this process alone
        return os.dup(file.fileno())


def read_header(file: int) -> Header | None:
    """The header of an open slot; None: nothing was ever written there."""
    raw = os.pread(file, _HEADER.size, 0)
    return _parse_header(raw) if len(raw) == _HEADER.size else None


def _parse_header(raw: bytes | memoryview) -> Header | None:
    magic, step, is_whole, start, nbytes = _HEADER.unpack(raw)
    return Header(step, bool(is_whole), start, nbytes) if magic == _MAGIC else None


def write_header(file: int, header: Header) -> None:
    """Put it in place of the one before."""
    own = (header.step, header.is_whole, header.index_start, header.index_bytes)
    os.pwrite(file, _HEADER.pack(_MAGIC, *own), 0)


def newest_common(cuts: Sequence[Mapping[int, str]]) -> tuple[int, tuple[str, ...]] | None:
    """The last of some `HeldSlots.cuts` that all ranks have: its step, and the path of each rank's;
    None: there is none."""
    if not cuts:
        return None
    steps = set.intersection(*(set(own) for own in cuts))
    if not steps:
        return None
    step = max(steps)
    return step, tuple(own[step] for own in cuts)
