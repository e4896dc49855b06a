"""A run's versions: which there are, which is current and since when, and the lock of who changes
them.

    RUN/current.json        the current version, and all changes of it
    RUN/versions/NAME/      whole run folders; `v1` is the run as it was trained, by hard links
    RUN/refits/NAME/        refit.json and the rows of the refit that made a version
    RUN/refits/lock         held by the process that changes anything of this
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tsarch.data.corpus import SPLITS
from tsarch.errors import Mistake, UserError, one_line
from tsarch.refit.records import Record, read_record, utc_now
from tsarch.run.checkpoint_keeper import link_or_copy
from tsarch.run.versions import CURRENT, VERSIONS, current_name, version_folder, write_durably

FIRST = "v1"
REFITS = "refits"
_NUMBERED = re.compile(r"v(\d+)")
_NEEDED = ("config.yaml", "model/task.json")
_LEFT_OUT = ("checkpoints", "logs", "tensorboard", "bad-batches", VERSIONS, REFITS, "watch")
"""Of a run's folder, what its first version needn't have."""


class LockedError(UserError):
    """Another process changes the versions now."""


class Lineage:
    """The versions of one run."""

    def __init__(self, run: Path) -> None:
        """Raises:
        UserError: `run` is no finished run.
        """
        self.run = run.expanduser().absolute()
        for needed in _NEEDED:
            if not (self.run / needed).is_file():
                what = f"is not a finished run ({needed} is missing)."
                raise UserError.single(str(run), what)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all processes that change versions; what one that was killed has left half
        done is put right.

        Raises:
            LockedError: another process does so now.
            UserError: the folder can't be written.
        """
        path = self.run / REFITS / "lock"
        try:
            path.parent.mkdir(exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError.single(str(path), f"can't be written: {error.strerror}.") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                what = f"its versions are being changed by another process ({file.read().strip()})."
                hint = "Wait until it has ended."
                raise LockedError([Mistake(str(self.run), what, hint)]) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {utc_now()}")
            file.flush()
            self._settle()
            yield

    @property
    def current(self) -> str:
        """Name of the current version."""
        return current_name(self.run) or FIRST

    @property
    def changes(self) -> list[dict[str, Any]]:
        """All changes of the current version: `version`, `at`, `why`."""
        if current_name(self.run) is None:
            return []
        found = json.loads((self.run / CURRENT).read_text(encoding="utf-8")).get("changes", [])
        return list(found)

    def folder(self, name: str) -> Path:
        """A version's run folder."""
        if name == FIRST and not version_folder(self.run, FIRST).is_dir():
            return self.run
        return version_folder(self.run, name)

    def refit_folder(self, name: str) -> Path:
        """Where the record and rows of the refit that made a version are."""
        return self.run / REFITS / name

    def has_weights(self, name: str) -> bool:
        """Whether a version's weights are still there."""
        return (self.folder(name) / "model" / "task.json").is_file()

    def records(self) -> list[Record]:
        """Of all refits, in order."""
        names = sorted(self._names(), key=_number)
        found = (read_record(self.refit_folder(name)) for name in names)
        return [own for own in found if own is not None]

    def ancestors(self, name: str) -> list[Record]:
        """Refits that a version came from, its own first."""
        records = {own.version: own for own in self.records()}
        found: list[Record] = []
        while name in records:
            found.append(records[name])
            name = records[name].parent
        return found

    def next_name(self) -> str:
        """A name that no version has had."""
        taken = [_number(own) for own in self._names()]
        return f"v{max([1, *taken]) + 1}"

    def adopt(self) -> None:
        """Make the run as it was trained its first version."""
        target = version_folder(self.run, FIRST)
        if target.is_dir():
            return
        aside = target.with_name(f"{FIRST}.new")
        shutil.rmtree(aside, ignore_errors=True)
        for source in sorted(self.run.rglob("*")):
            own = source.relative_to(self.run)
            if own.parts[0] not in (*_LEFT_OUT, CURRENT) and source.is_file():
                (aside / own).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(source, aside / own)
        aside.rename(target)

    def make_current(self, name: str, why: str) -> None:
        """Switch to a version, at once and for good.

        Raises:
            UserError: it can't be written.
        """
        if name == FIRST or current_name(self.run) is None:
            self.adopt()
        change = {"version": name, "at": utc_now(), "why": why}
        text = json.dumps({"version": name, "changes": [*self.changes, change]}, indent=2)
        try:
            write_durably(self.run / CURRENT, text + "\n")
        except OSError as error:
            where = str(self.run / CURRENT)
            raise UserError.single(where, f"can't be written: {one_line(error)}.") from None

    def discard(self, name: str) -> None:
        """Remove an unfinished refit, its record last."""
        remove_folder(version_folder(self.run, name))
        remove_folder(self.refit_folder(name))

    def prune(self, keep: int) -> list[str]:
        """Remove the weights of all but the `keep` newest versions, never those of the current one
        and of its parent, and what no version needs once it is decided; their names."""
        current = self.current
        parents = [own.parent for own in self.ancestors(current)[:1]]
        names = [FIRST, *(own.version for own in self.records())]
        names = [name for name in names if version_folder(self.run, name).is_dir()]
        old = [name for name in names[:-keep] if name not in (current, *parents)]
        for name in old:
            remove_folder(version_folder(self.run, name))
            for split in SPLITS:  # what is new of them stays, in files of its own
                (self.refit_folder(name) / f"{split}.jsonl").unlink(missing_ok=True)
        for name in names:
            remove_folder(version_folder(self.run, name) / "checkpoints")
        return old

    def _names(self) -> list[str]:
        folder = self.run / REFITS
        own = folder.iterdir() if folder.is_dir() else ()
        return [path.name for path in own if _NUMBERED.fullmatch(path.name)]

    def _settle(self) -> None:
        """Switch to a version that was accepted by a process that was killed before it did, and
        remove what one has left that was killed before it wrote a record."""
        for name in self._names():
            if read_record(self.refit_folder(name)) is None:
                self.discard(name)
        done = {change["version"] for change in self.changes}
        for own in self.records():
            if own.accepted and own.version not in done:
                self.make_current(own.version, own.reason)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is never found in part."""
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _number(name: str) -> int:
    match = _NUMBERED.fullmatch(name)
    assert match is not None
    return int(match[1])
