"""What of a batch is done: answers so far and their number, beside the output to be."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from tsarch.clock import now_s
from tsarch.errors import UserError, one_line
from tsarch.prediction.outputs import is_lines, write_table

_SAVED_EVERY_S = 1.0
_KEPT = "What is answered so far is kept: the same call goes on from there."


class Sink(Protocol):
    """Takes answers, in order."""

    inputs: int
    rows: int
    """That are written."""
    bad: int
    partly_read: int

    def add(
        self,
        lines: Sequence[bytes],
        columns: Sequence[str],
        bad: int,
        partly_read: int,
        inputs: int | None = None,
    ) -> None:
        """Take the next ones; `inputs`: that they are of, None: each of one."""

    def close(self) -> None:
        """No more come, for now."""

    def finish(self) -> None:
        """These were all."""


class _Counted:
    """What was taken so far, see `Sink`."""

    def __init__(self) -> None:
        self.inputs, self.rows, self.bad, self.partly_read = 0, 0, 0, 0

    def _count(self, rows: int, bad: int, partly_read: int, inputs: int | None) -> None:
        self.rows += rows
        self.inputs += rows if inputs is None else inputs
        self.bad += bad
        self.partly_read += partly_read


class Journal(_Counted):
    """Answers on their way to a file; a call that ends before all are there can go on later."""

    def __init__(self, output: Path, job: dict[str, Any]) -> None:
        super().__init__()
        self._output = output
        self._answers = output.with_name(output.name + ".part")
        self._state = output.with_name(output.name + ".part.json")
        self._job = job
        self._columns: dict[str, None] = {}
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._saved_s = now_s()

    def resume(self) -> None:
        """Take up what an earlier run of the same job left.

        Raises:
            UserError: it was another job.
        """
        if not self._state.is_file() or not self._answers.is_file():
            self._answers.unlink(missing_ok=True)
            return
        hint = "Give --restart to begin anew, or another --output."
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            job, columns = state["job"], dict.fromkeys(state["columns"])
            self.inputs, self.bad, self._bytes = state["inputs"], state["bad"], state["bytes"]
            self.partly_read, self.rows = state["partly_read"], state["rows"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            what = f"can't be read: {one_line(error)}."
            raise UserError.single(str(self._state), what, hint) from None
        if job != self._job:
            what = "was begun with other files, another run or another mode."
            raise UserError.single(str(self._state), what, hint)
        self._columns = columns
        os.truncate(self._answers, self._bytes)

    def discard(self) -> None:
        """Forget an earlier run."""
        self._state.unlink(missing_ok=True)
        self._answers.unlink(missing_ok=True)

    def add(
        self,
        lines: Sequence[bytes],
        columns: Sequence[str],
        bad: int,
        partly_read: int,
        inputs: int | None = None,
    ) -> None:
        """Keep the next answers.

        Raises:
            UserError: they can't be written.
        """
        with _told(self._output):
            if self._file is None:
                self._file = self._answers.open("ab")
            self._file.writelines(lines)
        self._count(len(lines), bad, partly_read, inputs)
        self._columns.update(dict.fromkeys(columns))
        if now_s() - self._saved_s >= _SAVED_EVERY_S:
            self._save()

    def close(self) -> None:
        """Keep what is there for a later call."""
        if self._file is not None:
            self._save()
            self._file.close()
            self._file = None

    def finish(self) -> None:
        """Put the answers where they belong, in the form that the ending says."""
        self.close()
        with _told(self._output):
            self._answers.touch()
            if is_lines(self._output):
                self._answers.replace(self._output)
            else:
                files = [own[0] for own in self._job["files"]]
                write_table(self._answers, self._output, list(self._columns), files)
        self.discard()

    def _save(self) -> None:
        assert self._file is not None
        with _told(self._output):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._bytes = self._file.tell()
            state = {"job": self._job, "inputs": self.inputs, "bad": self.bad}
            state |= {"rows": self.rows, "partly_read": self.partly_read, "bytes": self._bytes}
            state |= {"columns": list(self._columns)}
            new = self._state.with_name(self._state.name + ".new")
            new.write_text(json.dumps(state), encoding="utf-8")
            new.replace(self._state)
        self._saved_s = now_s()


class StandardOutput(_Counted):
    """Answers on their way out of this process, as JSON Lines."""

    def add(
        self,
        lines: Sequence[bytes],
        columns: Sequence[str],
        bad: int,
        partly_read: int,
        inputs: int | None = None,
    ) -> None:
        """Write the next answers.

        Raises:
            UserError: they can't be written.
        """
        with _told(Path("-"), ""):
            sys.stdout.buffer.writelines(lines)
            sys.stdout.buffer.flush()
        self._count(len(lines), bad, partly_read, inputs)

    def close(self) -> None:
        """Nothing is kept."""

    def finish(self) -> None:
        """All is written."""


@contextmanager
def _told(output: Path, kept: str = _KEPT) -> Iterator[None]:
    """A disk that is full, or is gone, as one message."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = f"Make room. {kept}".strip() if is_full else kept
        what = f"can't be written: {error.strerror or error}."
        raise UserError.single(f"--output {output}", what, hint) from None
