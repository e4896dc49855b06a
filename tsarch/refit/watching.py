"""Watches a folder and refits a run on each new file, exactly once."""

from __future__ import annotations

import fnmatch
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tsarch.errors import InterruptedRunError, RunFailedError, UserError, one_line
from tsarch.refit.journal import DECIDED, REFUSED, TOLD, Claim, Journal, digest_of
from tsarch.refit.lineage import Lineage, LockedError
from tsarch.refit.reading import NewDataError
from tsarch.refit.records import Record
from tsarch.refit.refit import Known, Refit, Train
from tsarch.refit.server import ServedRun
from tsarch.refit.settings import Request

_UNFINISHED = (".*", "_*", "*~", "*.tmp", "*.part", "*.partial", "*.crdownload", "*.swp")
"""Names that programs give to what they haven't written whole."""
REFUSED_FOLDER = "refused"
"""Where files that can't be used are put, with a text that says why."""
_MOST_FAILURES = 3
"""How often a file's training may fail in a row before the watch ends."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class WatchOptions:
    """How a folder is watched."""

    patterns: tuple[str, ...] = ("*",)
    poll_s: float = 5.0
    settle_s: float = 2.0
    """A file is taken once it has not changed for so long."""
    once: bool = False
    """End when all files that are there are done."""


class Watch:
    """A folder whose files a run is refitted on."""

    def __init__(
        self,
        folder: Path,
        lineage: Lineage,
        request: Request,
        options: WatchOptions,
        train: Train,
        say: Say,
        server: ServedRun | None = None,
    ) -> None:
        """Raises:
        UserError: there is no such folder.
        """
        if not folder.is_dir():
            raise UserError.single(str(folder), "is not a folder.")
        self._folder = folder
        self._lineage = lineage
        self._request = request
        self._options = options
        self._train = train
        self._say = say
        self._server = server
        self._journal = Journal(lineage.run / "watch")
        self._seen: dict[Path, tuple[int, int]] = {}
        self._done: dict[Path, tuple[int, int]] = {}
        self._failures = 0
        self._problem = ""

    def run(self) -> None:
        """Watch, until the process is ended (or, `once`, all is done).

        Raises:
            UserError: the run can't be refitted any more, whatever the file.
            RunFailedError: training failed several times in a row.
        """
        with self._journal.locked():
            self._say(f"watching {self._folder} for {self._lineage.run}")
            while True:
                left = self._look()
                if self._options.once and not left:
                    return
                time.sleep(self._options.settle_s if left else self._options.poll_s)

    def _look(self) -> int:
        """Use what is there; how many files are not done yet."""
        for left in self._journal.open_claims():
            if not self._use(left):
                return 1
        waiting = 0
        for path in self._files():
            stamp = _stamp(path)
            if not stamp or not stamp[0] or self._done.get(path) == stamp:  # empty: to be written
                continue
            if not self._is_stable(path, stamp):
                waiting += 1
                continue
            claim = self._claim(path)
            if claim is not None and not self._use(claim):
                return waiting + 1
            self._done[path] = stamp
        self._tell()
        return waiting

    def _files(self) -> list[Path]:
        """Files with names that are meant, oldest first."""
        found = [path for path in self._folder.iterdir() if path.is_file() and self._is_meant(path)]
        stamped = [(stamp[1], path.name, path) for path in found if (stamp := _stamp(path))]
        return [path for _, _, path in sorted(stamped)]

    def _is_meant(self, path: Path) -> bool:
        def fits(patterns: Sequence[str]) -> bool:
            return any(fnmatch.fnmatch(path.name, own) for own in patterns)

        return fits(self._options.patterns) and not fits(_UNFINISHED)

    def _is_stable(self, path: Path, stamp: tuple[int, int]) -> bool:
        """Whether nobody writes a file any more: it was the same at the last look, and has been for
        a while."""
        same = self._seen.get(path) == stamp
        self._seen[path] = stamp
        return same and time.time() - stamp[1] / 1e9 >= self._options.settle_s

    def _claim(self, path: Path) -> Claim | None:
        """The claim on a file; None: its content was claimed before, or it has just gone."""
        try:
            claim = self._journal.claim(path)
            if claim is not None:
                return claim
            known = self._journal.outcome(digest_of(path))
        except FileNotFoundError:
            return None
        if known is not None and known["step"] == REFUSED:
            self._put_aside(path, str(known["reason"]))
        elif known is not None and known["name"] != path.name:
            self._say(f"{path.name} is {known['name']} again, which was used already: passed over")
        return None

    def _use(self, claim: Claim) -> bool:
        """Refit on a claimed file; False: not now."""
        source = self._folder / claim.name
        self._say(f"using {source}")
        try:
            with self._lineage.locked():
                refit = Refit(self._lineage, self._request, self._train, self._say)
                found = refit.run([str(claim.path)], source=str(source))
        except LockedError as error:
            self._say(f"waiting: {error}")
            return False
        except NewDataError as error:
            self._refuse(claim, source, str(error).replace(str(claim.path), str(source)))
            return True
        except InterruptedRunError:
            raise
        except RunFailedError as error:
            self._failures += 1
            if self._failures >= _MOST_FAILURES:
                raise
            self._say(f"warning: {source} is tried again: {one_line(error)}")
            return False
        self._failures = 0
        self._close(claim, found, str(source))
        return True

    def _close(self, claim: Claim, found: Record | Known, source: str) -> None:
        record = found.record if isinstance(found, Known) else found
        is_own = record.source == source  # not if the rows came with another file before
        reason = record.reason if is_own else f"its rows are those of {record.source}"
        accepted = bool(record.accepted) and is_own
        facts = {"version": record.version, "accepted": accepted, "reason": reason}
        self._journal.close(claim, DECIDED, **facts)
        outcome = "current now" if accepted else "not taken"
        self._say(f"{claim.name}: {record.version} is {outcome}: {reason}")
        self._tell()

    def _refuse(self, claim: Claim, source: Path, reason: str) -> None:
        """Note that a file can't be used, and put it aside."""
        is_same = source.is_file() and digest_of(source) == claim.digest
        self._journal.close(claim, REFUSED, reason=reason)
        if is_same:
            self._put_aside(source, reason)
        self._say(f"warning: {claim.name} can't be used: {reason}")

    def _put_aside(self, path: Path, reason: str) -> None:
        """Move a file out of the way, with a text beside it that says why."""
        folder = self._folder / REFUSED_FOLDER
        folder.mkdir(exist_ok=True)
        target, number = folder / path.name, 2
        while target.exists():
            target, number = folder / f"{path.stem}-{number}{path.suffix}", number + 1
        target.with_name(f"{target.name}.why.txt").write_text(f"{reason}\n", encoding="utf-8")
        shutil.move(path, target)

    def _tell(self) -> None:
        """Have the server swap, if it hasn't yet."""
        version = self._journal.untold() if self._server is not None else None
        if version is None or self._server is None:
            return
        problem = self._server.swap()
        if problem is None:
            self._journal.add(TOLD, "", version=version)
            self._say(f"{self._server.url} has swapped to {version}")
        elif problem != self._problem:
            self._say(f"warning: the server hasn't swapped; it is told again: {problem}")
        self._problem = problem or ""


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written; None: it has gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns
