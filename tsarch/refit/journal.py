"""What was done with each file that a watch has picked up, by what the file holds.

A line is written when a step is done, and is there after a power cut; a line that was cut off in
writing is no line. A file is claimed (its bytes are kept), then decided (a version was made of it,
and taken or not) or refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsarch.errors import UserError
from tsarch.refit.records import utc_now

_CHUNK = 1 << 20
CLAIMED, DECIDED, REFUSED, TOLD = "claimed", "decided", "refused", "told"


@dataclass(frozen=True)
class Claim:
    """A file that is to be used."""

    digest: str
    name: str
    """Of the file that was found."""
    path: Path
    """Of the bytes that are kept of it."""


class Journal:
    """The journal of one run, in `RUN/watch/`."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made if it isn't there.

        Raises:
            UserError: it can't be written.
        """
        self._folder = folder
        self._path = folder / "journal.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError.single(str(folder), f"can't be made: {error.strerror}.") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all that watch for this run.

        Raises:
            UserError: another process does.
        """
        with (self._folder / "lock").open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                what = "another process watches for this run already."
                raise UserError.single(str(self._folder), what, "End that one first.") from None
            self._drop_torn_line()
            yield

    def entries(self) -> list[dict[str, Any]]:
        """All lines, in order."""
        if not self._path.is_file():
            return []
        lines = self._path.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def add(self, step: str, digest: str, **facts: Any) -> None:
        """Write a line."""
        line = json.dumps({"at": utc_now(), "step": step, "file": digest, **facts})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def knows(self, digest: str) -> bool:
        """Whether a file's content was ever claimed."""
        return any(own["file"] == digest and own["step"] == CLAIMED for own in self.entries())

    def claim(self, source: Path) -> Claim | None:
        """Keep a file's bytes and note them; None: they were claimed before, or the file is being
        written."""
        before = source.stat()
        aside = self._folder / "files" / ".new"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        digest = _copied(source, aside / source.name)
        after = source.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            return None
        if self.knows(digest):
            shutil.rmtree(aside)
            return None
        kept = self._folder / "files" / digest
        shutil.rmtree(kept, ignore_errors=True)
        aside.rename(kept)
        self.add(CLAIMED, digest, name=source.name, bytes=after.st_size)
        return Claim(digest, source.name, kept / source.name)

    def close(self, claim: Claim, step: str, **facts: Any) -> None:
        """Note what became of a claimed file; its bytes are needed no more."""
        self.add(step, claim.digest, name=claim.name, **facts)
        shutil.rmtree(claim.path.parent, ignore_errors=True)

    def open_claims(self) -> list[Claim]:
        """Files that were claimed, and nothing has become of yet; in order."""
        entries = self.entries()
        closed = {own["file"] for own in entries if own["step"] in (DECIDED, REFUSED)}
        return [
            Claim(own["file"], own["name"], self._folder / "files" / own["file"] / own["name"])
            for own in entries
            if own["step"] == CLAIMED and own["file"] not in closed
        ]

    def outcome(self, digest: str) -> dict[str, Any] | None:
        """What became of a file's content."""
        found = [own for own in self.entries() if own["file"] == digest]
        return next((own for own in found if own["step"] in (DECIDED, REFUSED)), None)

    def untold(self) -> str | None:
        """The version that was taken last, if no server was told of it or a later one."""
        version = None
        for own in self.entries():
            if own["step"] == DECIDED and own["accepted"]:
                version = str(own["version"])
            elif own["step"] == TOLD:
                version = None
        return version

    def _drop_torn_line(self) -> None:
        if self._path.is_file():
            whole = self._path.read_bytes().rpartition(b"\n")
            os.truncate(self._path, len(whole[0]) + len(whole[1]))


def digest_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copied(source: Path, target: Path) -> str:
    """Copy a file, for good; the digest of what was copied."""
    digest = hashlib.sha256()
    with source.open("rb") as file, target.open("wb") as copy:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            copy.write(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest()
