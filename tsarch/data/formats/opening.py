"""The text of a file: unpacked if it is compressed, in the encoding that the config names."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tsarch.data.formats.findings import Findings
from tsarch.data.formats.guess import binary_kind
from tsarch.data.formats.text import DAMAGED, MARKS, Text, at_hand, is_utf8
from tsarch.errors import UserError, one_line

ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Of compressed files; what they hold is named before: `train.jsonl.gz`."""
_SHOWN_LINES = 5
_SHOWN_CHARACTERS = 60


def inner_name(path: str) -> str:
    """A file's name without the ending of its compression."""
    name, ending = os.path.splitext(path)
    return name if ending.lower() in ENDINGS else path


def read_content(path: str, where: str) -> bytes:
    """The bytes of a file, unpacked.

    Raises:
        UserError: it can't be read, or holds nothing.
    """
    _check_file(path, where)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError.single(where, f"can't be read: {error.strerror}.") from None
    for magic, unpack in _UNPACKERS.items():
        if content.startswith(magic) and not _is_workbook(content):
            content = _unpacked(content, unpack, where)
            break
    if not content.strip():
        raise UserError.single(where, "is empty.")
    return content


@contextmanager
def opened(path: str, where: str) -> Iterator[io.BufferedReader]:
    """A file that is read, packed as it may be, as it is used.

    Raises:
        UserError: it can't be read, also later, or is empty.
    """
    _check_file(path, where)
    try:
        with open(path, "rb") as file:
            if not file.peek(1):
                raise UserError.single(where, "is empty.")
            yield file
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError.single(where, f"can't be read: {one_line(error)}.") from None


def _check_file(path: str, where: str) -> None:
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise UserError.single(where, "can't be read: it is no file.")  # a pipe would never end
    if os.path.isdir(path):
        hint = "Several files are named by a pattern, such as FOLDER/*.json."
        raise UserError.single(where, "can't be read: Is a directory.", hint)


def _is_workbook(content: bytes) -> bool:
    return content.startswith(b"PK") and b"[Content_Types].xml" in content[:2000]


def _unpacked(content: bytes, unpack: Callable[[bytes, str], bytes], where: str) -> bytes:
    try:
        return unpack(content, where)
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError.single(where, f"can't be read: it is damaged: {one_line(error)}.") from None


def _from_zip(content: bytes, where: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(_only_name(archive, where))


def _only_name(archive: zipfile.ZipFile, where: str) -> str:
    names = [own.filename for own in archive.infolist() if not own.is_dir()]
    if len(names) != 1:
        what = f"can't be read: it is a ZIP archive of {len(names)} files."
        hint = f"Unpack it and name the one that is meant: {', '.join(names[:5])}."
        raise UserError.single(where, what, hint if names else "")
    return names[0]


def _from_zstd(content: bytes, where: str) -> bytes:
    import pyarrow as pa  # type: ignore[import-untyped]

    with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
        return bytes(stream.read())


_UNPACKERS: dict[bytes, Callable[[bytes, str], bytes]] = {
    b"\x1f\x8b": lambda content, where: gzip.decompress(content),
    b"BZh": lambda content, where: bz2.decompress(content),
    b"\xfd7zXZ\x00": lambda content, where: lzma.decompress(content),
    b"\x28\xb5\x2f\xfd": _from_zstd,
    b"PK\x03\x04": _from_zip,
}


def unpacking(binary: io.BufferedReader, where: str) -> IO[bytes]:
    """The content of an open file, unpacked while it is read.

    Raises:
        UserError: it is an archive of several files.
    """
    start = binary.peek(2048)
    for magic, unpack in _STREAMS.items():
        if start.startswith(magic) and not _is_workbook(start):
            stream: IO[bytes] = unpack(binary, where)
            return stream
    return binary


def _zip_stream(binary: io.BufferedReader, where: str) -> IO[bytes]:
    if not binary.seekable():
        what = "can't be read: a ZIP archive has its table of contents at its end."
        raise UserError.single(where, what, "Unpack it before, or give its name in place of `-`.")
    archive = zipfile.ZipFile(binary)
    return archive.open(_only_name(archive, where))


def _zstd_stream(binary: io.BufferedReader, where: str) -> IO[bytes]:
    import pyarrow as pa

    stream: IO[bytes] = pa.CompressedInputStream(pa.PythonFile(binary, "r"), "zstd")
    return stream


_STREAMS: dict[bytes, Callable[[io.BufferedReader, str], Any]] = {
    b"\x1f\x8b": lambda binary, where: gzip.GzipFile(fileobj=binary),
    b"BZh": lambda binary, where: bz2.BZ2File(binary),
    b"\xfd7zXZ\x00": lambda binary, where: lzma.LZMAFile(binary),  # noqa: SIM115 - `_open` closes
    b"\x28\xb5\x2f\xfd": _zstd_stream,
    b"PK\x03\x04": _zip_stream,
}


def decoded(
    content: bytes, path: str, where: str, encoding: str | None, findings: Findings
) -> Text:
    """The text of a file that is at hand.

    Without `encoding`: UTF-8, or what a byte order mark says.

    Raises:
        UserError: the file is no text, or not in the encoding that was named.
    """
    marked = next((own for mark, own in MARKS.items() if content.startswith(mark)), None)
    if encoding is not None:
        text = _named(content, where, encoding)
        return at_hand(_with_line_ends(text))
    if marked is not None:
        findings.note(f"read as {marked.upper()}, which its byte order mark says")
        return at_hand(_with_line_ends(_named(content, where, marked)))
    if kind := binary_kind(content):
        raise UserError.single(where, f"is no text: {kind}")
    lines = [] if is_utf8(content) else content.split(b"\n")
    broken = {number for number, line in enumerate(lines, 1) if not is_utf8(line)}
    if broken:
        _tell_broken(path, lines, broken, findings)
    return at_hand(_with_line_ends(content.decode("utf-8-sig", errors="replace")), broken)


def _named(content: bytes, where: str, encoding: str) -> str:
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except (UnicodeError, ValueError) as error:
        what = f"can't be read as {encoding} (data.encoding): {one_line(error)}."
        raise UserError.single(where, what, "Name the encoding that it was written in.") from None


def _with_line_ends(text: str) -> str:
    return text if "\n" in text else text.replace("\r", "\n")


def _tell_broken(path: str, lines: list[bytes], broken: set[int], findings: Findings) -> None:
    """One message for the whole file: the first line, as the likeliest encoding reads it."""
    first, *others = sorted(broken)
    what = "is not UTF-8 text."
    if others:
        shown = ", ".join(map(str, others[:_SHOWN_LINES]))
        more = f" and {len(others) - _SHOWN_LINES:,} more" if len(others) > _SHOWN_LINES else ""
        what = f"is not UTF-8 text, nor are lines {shown}{more}."
    line = lines[first - 1]
    guess = next((own for own in ("cp1252", "latin-1") if _can_read(line, own)), "latin-1")
    start = max(0, next(n for n, byte in enumerate(line) if byte > 127) - _SHOWN_CHARACTERS // 2)
    read = line[start : start + _SHOWN_CHARACTERS].decode(guess).strip()
    hint = f"Name its encoding: with `data.encoding: {guess}` it says {read!r}."
    findings.mistake(f"{path}:{first}", what, hint)


def _can_read(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
