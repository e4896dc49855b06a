"""Inputs from files, one at a time, so that memory doesn't grow with them.

The readers are those of training data (`data/formats/`), without labels; the rows keep all of their
columns.
"""

from __future__ import annotations

import io
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec

from tsarch.data.formats.brat import is_brat
from tsarch.data.formats.findings import Findings, Found
from tsarch.data.formats.opening import unpacking
from tsarch.data.formats.shapes import Item, Raw, fitting, plain_columns
from tsarch.data.formats.tables import parquet_stream
from tsarch.data.formats.text import DAMAGED, Text, text_of
from tsarch.data.formats.word_rows import with_sentences
from tsarch.data.rows import Place
from tsarch.data.sources import PARQUET, STDIN, kind_of_name, text_rows, told_of_lines
from tsarch.errors import UserError, one_line
from tsarch.inputs.reading import Reading
from tsarch.inputs.rows import Input

NOT_UTF8 = "is not UTF-8 text."
"""What is wrong with a line."""
_LOOKED_AT = 100
_BUFFER_BYTES = 2**16
_NUMBER = re.compile(r":(?:row |item )?(\d+)$")


class FileInput(NamedTuple):
    """One input, and where it stands. (A frozen dataclass takes five times as long to make.)"""

    row: dict[str, Any]
    """Its columns, as they are written again."""
    value: Input | None
    """What is predicted; None: it can't be read, as `problem` says."""
    place: str
    """Where it stands; no other input of the file has the same."""
    problem: str = ""
    document: str | None = None
    """Inputs of one document that follow one another are read together."""


def input_files(patterns: Sequence[str], is_tagged: bool = False) -> list[str]:
    """The files that paths, globs and URLs name, each pattern's in the order of their names.

    Args:
        is_tagged: a folder of BRAT's means its texts.

    Raises:
        UserError: one names none.
    """
    found: list[str] = []
    for pattern in patterns:
        files = [pattern] if pattern == STDIN else _named(pattern, is_tagged)
        if not files:
            raise UserError.single(pattern, "names no file.")
        found += files
    if found.count(STDIN) > 1:
        raise UserError.single(STDIN, "is standard input, which is read once.")
    return found


def _named(pattern: str, is_tagged: bool) -> list[str]:
    own = Path(pattern)
    if own.is_dir():
        if is_tagged and is_brat(pattern):
            return [str(path) for path in sorted(own.rglob("*.txt"))]
        hint = f"Name its files by a pattern, such as '{own}/*.jsonl'."
        raise UserError.single(pattern, "is a folder.", hint)
    if own.is_file():
        return [pattern]  # though its name may have a `*` or a `[`
    try:
        return sorted(_name(own) for own in fsspec.open_files(pattern, "rb") if _is_there(own))
    except Exception as error:  # file systems raise what they like
        raise UserError.single(pattern, f"can't be read: {one_line(error)}.") from None


def _name(file: fsspec.core.OpenFile) -> str:
    """A local file's path, or a URL."""
    return str(file.path if "file" in file.fs.protocol else file.full_name)


def _is_there(file: fsspec.core.OpenFile) -> bool:
    return bool(file.fs.isfile(file.path))


def check_files(paths: Sequence[str], reading: Reading, skip_bad: bool) -> None:
    """Check that each file can be opened and is of a known format.

    Raises:
        UserError: one isn't, or is damaged within what that is told from, unless `skip_bad`.
    """
    for path in paths:
        if path != STDIN:
            InputFile(path, reading).check(skip_bad)


class _Counted(io.RawIOBase):
    """An open file that counts the bytes that are read."""

    def __init__(self, binary: IO[bytes]) -> None:
        self._binary = binary
        # What is there now, where a pipe may have more later.
        self._read = getattr(binary, "read1", binary.read)
        self.num_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._read(len(buffer))
        buffer[: len(found)] = found
        self.num_read += len(found)
        return len(found)

    def seekable(self) -> bool:
        return self._binary.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._binary.seek(offset, whence)

    def tell(self) -> int:
        return self._binary.tell()


class InputFile:
    """The inputs of one file, in order: its rows, or the lines of a text that aren't empty.

    Attributes:
        size: its bytes; 0: nobody knows.
        version: what another content of the same name has not.
        findings: remarks on how it is read.
    """

    def __init__(self, path: str, reading: Reading) -> None:
        self.path = path
        self.findings = Findings()
        self._reading = reading
        self._text: Text | None = None
        self._share = 0.0
        self.size, self.version = (0, "") if path == STDIN else _size(path)

    @property
    def position(self) -> int:
        """Bytes that have been used, or so."""
        if self._text is not None:
            return min(self._text.position, self.size) if self.size else self._text.position
        return int(self.size * self._share)

    def check(self, skip_bad: bool) -> None:
        """See whether its format is known.

        Raises:
            UserError: it isn't, or the file can't be read; `skip_bad`: from its beginning.
        """
        next(iter(self._opened(only_begin=True)), None)
        if self._text is not None and self._text.damage is not None and not skip_bad:
            raise self._damaged(self._text.damage)

    def __iter__(self) -> Iterator[FileInput]:
        """The inputs; what keeps the rest of the file from being read is the last one."""
        try:
            yield from self._opened()
        except UserError as error:
            for mistake in error.mistakes:
                yield _bad(mistake.where, f"{mistake.what} {mistake.hint}")
        self._text, self._share = None, 1.0

    def _opened(self, only_begin: bool = False) -> Iterator[FileInput]:
        try:
            with _open(self.path) as file:
                raw = _Counted(file)
                binary: Any = io.BufferedReader(raw, _BUFFER_BYTES)
                if binary.peek(4)[:4] == PARQUET or kind_of_name(self.path) == "parquet":
                    found: Iterator[FileInput] = self._parquet(binary)
                else:
                    content = unpacking(binary, self.path)
                    encoding = self._reading.data.encoding
                    text = text_of(content, self.path, encoding, lambda: raw.num_read)
                    found = self._of_text(text)
                yield from itertools.islice(found, 1) if only_begin else found
        except UserError:
            raise
        except DAMAGED as error:
            raise self._damaged(error) from None
        except Exception as error:  # file systems and unpackers raise what they like
            raise UserError.single(self.path, f"can't be read: {one_line(error)}.") from None

    def _damaged(self, error: Exception) -> UserError:
        what = f"can't be read any further: it is damaged: {one_line(error)}."
        return UserError.single(self.path, what)

    def _parquet(self, binary: io.BufferedReader) -> Iterator[FileInput]:
        if not binary.seekable():
            what = "can't be read: Parquet has its table of contents at its end."
            raise UserError.single(self.path, what, "Name the file in place of `-`.")
        yield from self._inputs(self._parquet_rows(binary))

    def _parquet_rows(self, binary: io.BufferedReader) -> Found:
        for place, row, number in parquet_stream(binary, self.path):
            self._share = place.number / number
            yield place, row

    def _of_text(self, text: Text) -> Iterator[FileInput]:
        self._text = text
        if not text.start.strip() and text.is_whole:
            self.findings.note(f"{self.path} is empty")
            return
        reading = self._reading
        if self.path != STDIN and "tags" in reading.names and is_brat(self.path):
            whole = text.whole(self.path, "")
            own = {"doc_id": Path(self.path).stem, "text": whole}
            yield FileInput(own, whole, self.path)
            return
        kind = told_of_lines(self.path, text, reading.data, reading.reader)
        if kind == "text":
            yield from self._lines(text)
            return
        found = text_rows(
            kind, self.path, text, reading.data, reading.reader, self.findings, only_predicted=True
        )
        yield from self._inputs(found)

    def _lines(self, text: Text) -> Iterator[FileInput]:
        for number, line in enumerate(text.lines(), 1):
            place = f"{self.path}:{number}"
            if number in text.broken:
                yield _bad(place, NOT_UTF8, {"text": line})
            elif line.strip():
                line = line.removesuffix("\r")
                yield FileInput({"text": line}, line, place)

    def _inputs(self, found: Found) -> Iterator[FileInput]:
        """The rows, and in their places what is wrong with others."""
        stopped: list[Exception] = []
        doc_id, last = self._reading.names.get("doc_id", ""), ""
        for place, row, value in self._values(_until_error(found, stopped)):
            if self.findings.mistakes:
                yield from self._mistakes(place.number)
            where = place.name if str(place) == last else str(place)  # several on a line
            last = str(place)
            if self._is_broken(place, row):
                yield _bad(where, NOT_UTF8, row)
            else:
                document = row.get(doc_id)
                shown = None if document in (None, "") else str(document)
                yield FileInput(row, value, where, document=shown)
        yield from self._mistakes(sys.maxsize)
        if stopped:
            raise stopped[0]

    def _values(self, found: Found) -> Iterator[tuple[Place, Raw, Input]]:
        """Rows as they are written again, and what is predicted of them."""
        reading = self._reading
        first = list(itertools.islice(found, _LOOKED_AT))
        rows = itertools.chain(first, found)
        shapes, wanted = reading.reader.shapes, reading.data.format
        shape = fitting([raw for _, raw in first], shapes, wanted, reading.names)
        if shape is None:
            for place, row in with_sentences(rows, reading.names, self.findings):
                yield place, row, reading.value(row)
            return
        self.findings.note(f"read as {shape.title}")
        for place, raw in rows:
            item = Item(place, raw, reading.names, reading.labelled, self.findings)
            if shape.text is None:
                further = plain_columns(raw)
                for own, row in shape.rows(item):
                    yield own, {**further, **row}, reading.value(row)
            elif (text := shape.text(item)) is not None:
                yield place, raw, text

    def _mistakes(self, before: int) -> Iterator[FileInput]:
        """What the reader has found wrong so far, before a line or row."""
        kept = []
        broken = set() if self._text is None else self._text.broken
        for mistake in self.findings.mistakes:
            match = _NUMBER.search(mistake.where)
            number = int(match[1]) if match else 0
            if number >= before:
                kept.append(mistake)
            elif number in broken:
                yield _bad(mistake.where, NOT_UTF8)
            else:
                yield _bad(mistake.where, f"{mistake.what} {mistake.hint}")
        self.findings.mistakes = kept

    def _is_broken(self, place: Place, row: Mapping[str, Any]) -> bool:
        """Whether one of a row's lines is no sound text."""
        if self._text is None or not self._text.broken:
            return False
        last = place.number
        for value in row.values():
            if isinstance(value, str):
                last += value.count("\n")
            elif place.line_per_word and isinstance(value, list):
                last = max(last, place.number + len(value) - 1)
        return not self._text.broken.isdisjoint(range(place.number, last + 1))


def _until_error(found: Found, stopped: list[Exception]) -> Found:
    """The rows before one that keeps others from being read, which goes to `stopped`: whoever looks
    at some rows together has those before it."""
    try:
        yield from found
    except Exception as error:  # told in its place
        stopped.append(error)


def _bad(place: str, problem: str, row: dict[str, Any] | None = None) -> FileInput:
    return FileInput(row or {}, None, place, problem.strip())


def _open(path: str) -> Any:
    if path == STDIN:
        return nullcontext(sys.stdin.buffer)
    return fsspec.open(path, "rb")


def _size(path: str) -> tuple[int, str]:
    """Bytes of a file, and what tells its content from another of the same name.

    Raises:
        UserError: it can't be read.
    """
    try:
        filesystem, own = fsspec.core.url_to_fs(path)
        return int(filesystem.size(own) or 0), str(filesystem.ukey(own))
    except Exception as error:  # file systems raise what they like
        raise UserError.single(path, f"can't be read: {one_line(error)}.") from None
