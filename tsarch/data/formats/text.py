"""The text of a file, at hand as a whole or read part by part, so that one set of readers takes
files that become data and files of any size that are only predicted."""

from __future__ import annotations

import codecs
import io
import itertools
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from tsarch.data.formats.guess import binary_kind
from tsarch.errors import UserError, one_line

MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
DAMAGED = (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)
"""What unpackers raise of content that is damaged."""
MOST_AT_ONCE = 2**30
"""Characters of a text that can only be read as a whole."""
START_CHARACTERS = 2**18
_PART_BYTES = 2**16


class Text:
    """A text, which is read once.

    Args:
        parts: it, in order. Each but the last ends with a line, or (a list in one line) nowhere.
        bytes_read: how many bytes of the file have been read.

    Attributes:
        start: its first characters, all of its first line among them: what a file is is told from
            them. All of a text that is at hand.
        is_whole: whether that is all.
        broken: numbers of lines that are no sound text; those that have been read.
        damage: what keeps the rest from being read, as far as `start` goes; None: nothing does.
    """

    def __init__(
        self,
        parts: Iterable[str],
        broken: set[int] | None = None,
        bytes_read: Callable[[], int] = lambda: 0,
    ) -> None:
        self._parts = iter(parts)
        self.broken = set() if broken is None else broken
        self._bytes_read = bytes_read
        self._before, self._after = 0, 0
        self._taken, self._size = 0, 1
        self.damage: Exception | None = None
        first: list[str] = []
        following = None
        try:
            for part in self._parts:
                first.append(part)
                if sum(map(len, first)) >= START_CHARACTERS:
                    break
            following = next(self._parts, None)
        except DAMAGED as error:
            if isinstance(error, UserError) or not first:
                raise
            self.damage = error
            self._parts = _raising(error)
        self.start = "".join(first)
        self.is_whole = following is None and self.damage is None
        if following is not None:
            self._parts = itertools.chain((following,), self._parts)

    @property
    def position(self) -> int:
        """Bytes of the file that have been used, or so."""
        return self._before + (self._after - self._before) * self._taken // self._size

    def parts(self) -> Iterator[str]:
        """The text; `took` says how far a part is used."""
        for part in itertools.chain((self.start,), self._parts):
            self._before, self._after = self._after, self._bytes_read()
            self._taken, self._size = 0, max(len(part), 1)
            yield part
        self._taken = self._size

    def took(self, characters: int) -> None:
        """So much of a part has been used."""
        self._taken = min(self._taken + characters, self._size)

    def lines(self) -> Iterator[str]:
        """Its lines, without their ends."""
        for part in self.parts():
            for line in part.removesuffix("\n").split("\n"):
                yield line
                self.took(len(line) + 1)

    def lines_for_csv(self) -> Iterator[str]:
        """Its lines, with whatever ends them."""
        for part in self.parts():
            for line in io.StringIO(part, newline=""):
                self.took(len(line))
                yield line

    def whole(self, where: str, hint: str) -> str:
        """All of it, of a format that can't be read part by part.

        Raises:
            UserError: it has more characters than are read at once.
        """
        own, size = [], 0
        for part in self.parts():
            own.append(part)
            size += len(part)
            if size > MOST_AT_ONCE:
                what = f"is read as a whole, and has more than {MOST_AT_ONCE:,} characters."
                raise UserError.single(where, what, hint)
        return "".join(own)


def _raising(error: Exception) -> Iterator[str]:
    yield from ()
    raise error


class _Salvaged:
    """A stream of which all that comes before damage is read."""

    def __init__(self, binary: Any) -> None:
        self._binary = binary
        self._damage: Exception | None = None

    def read(self, size: int) -> bytes:
        """So many bytes, or fewer before damage and at the end.

        Raises:
            Exception: one of `DAMAGED`, where there is nothing before it.
        """
        if self._damage is not None:
            raise self._damage
        parts: list[bytes] = []
        while size > 0:
            try:
                part = self._binary.read1(size)
            except DAMAGED as error:
                if not parts:
                    raise
                self._damage = error
                break
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def at_hand(text: str, broken: set[int] | None = None) -> Text:
    """A text that has been read."""
    return Text((text,), broken)


def text_of(
    binary: IO[bytes], where: str, encoding: str | None, bytes_read: Callable[[], int]
) -> Text:
    """The text of an open file (unpacked), read as it is used.

    Raises:
        UserError: it is no text.
    """
    stream = _Salvaged(binary)
    start = stream.read(START_CHARACTERS)
    mark = next((own for own in MARKS if start.startswith(own)), None)
    encoding = encoding or (MARKS[mark] if mark else None)
    if encoding is None and (kind := binary_kind(start)):
        raise UserError.single(where, f"is no text: {kind}")
    chunks = itertools.chain((start,), iter(lambda: stream.read(_PART_BYTES), b""))
    broken: set[int] = set()
    if encoding is not None and codecs.lookup(encoding).name != "utf-8":
        parts = _decoded(chunks, where, encoding)
    else:
        parts = _from_utf8(chunks, broken, start)
    return Text(parts, broken, bytes_read)


def _from_utf8(chunks: Iterable[bytes], broken: set[int], start: bytes) -> Iterator[str]:
    """Whole lines at a time, unless a list begins the text, which may have all in one line."""
    start = start.removeprefix(codecs.BOM_UTF8)
    if start.lstrip()[:1] == b"[" and b"\n" not in start.strip():
        decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        yield from filter(None, map(decoder.decode, chunks))
        yield decoder.decode(b"", final=True)
        return
    end = b"\n" if b"\n" in start or b"\r" not in start[:-1] else b"\r"  # as old Macs wrote
    number = 1
    for part in _whole_lines(chunks, end):
        if end == b"\r":
            part = part.replace(b"\r", b"\n")
        try:
            text = part.decode()
        except UnicodeDecodeError:
            lines = part.split(b"\n")
            broken.update(n for n, line in enumerate(lines, number) if not is_utf8(line))
            text = part.decode(errors="replace")
        yield text.removeprefix("\ufeff") if number == 1 else text
        number += part.count(b"\n")


def _whole_lines(chunks: Iterable[bytes], end: bytes) -> Iterator[bytes]:
    kept: list[bytes] = []
    for chunk in chunks:
        lines, found, rest = chunk.rpartition(end)
        if found:
            yield b"".join((*kept, lines, found))
            kept = []
        kept.append(rest)
    if any(kept):
        yield b"".join(kept)


def _decoded(chunks: Iterable[bytes], where: str, encoding: str) -> Iterator[str]:
    """Whole lines at a time.

    Raises:
        UserError: it isn't in this encoding.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    kept, is_first = "", True
    try:
        for chunk in itertools.chain(chunks, (b"",)):
            text = decoder.decode(chunk, final=not chunk)
            text = text.removeprefix("\ufeff") if is_first else text
            is_first = is_first and not text
            lines, end, rest = text.rpartition("\n")
            if end:
                yield kept + lines + end
                kept = ""
            kept += rest
    except (UnicodeError, ValueError) as error:
        what = f"can't be read as {encoding} (data.encoding): {one_line(error)}."
        raise UserError.single(where, what, "Name the encoding that it was written in.") from None
    if kept:
        yield kept if "\n" in kept else kept.replace("\r", "\n")


def is_utf8(content: bytes) -> bool:
    """Whether bytes are UTF-8."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
