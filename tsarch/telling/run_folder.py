"""The run folder: `config.yaml`, `metrics.jsonl`, `evaluations.jsonl`, `tensorboard/`,
`trace.json`, `profile.json`, `summary.json`, `model/`. (`report.html` is made from these:
`telling/report.py`.)"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tsarch.blueprint import Blueprint
from tsarch.config_loading import dump_config
from tsarch.errors import UserError, one_line
from tsarch.profiled import Profile
from tsarch.redaction import redact_urls


@contextmanager
def claimed_folder(blueprint: Blueprint, resume: bool = False) -> Iterator[Path]:
    """A folder of the run's own, or the one of the run that goes on, which no other process on this
    host trains in meanwhile. A new one that nothing was written into is gone afterwards.

    `run.name` gets a number if its folder is taken; an explicit `run.folder` must be free.

    Raises:
        UserError: `run.folder` is taken or can't be made; another process has it; on `resume`,
            there is nothing to go on with.
    """
    claim = _resumed(blueprint) if resume else _chosen(blueprint)
    try:
        yield claim.folder.absolute()
    finally:
        if claim.is_new:
            with suppress(OSError):  # it has files
                claim.folder.rmdir()
        with suppress(OSError):  # also for processes that were forked off meanwhile
            fcntl.flock(claim.descriptor, fcntl.LOCK_UN)
        os.close(claim.descriptor)


@dataclass(frozen=True)
class _Claim:
    """Keeps other processes of this host from a folder until its descriptor is closed."""

    folder: Path
    descriptor: int
    is_new: bool = False
    """Whether the folder was made for it."""


def _resumed(blueprint: Blueprint) -> _Claim:
    folder = resumed_folder(blueprint)
    try:
        claim = _claim(folder)
    except OSError as error:
        raise UserError.single(f"--resume: {folder}", f"{one_line(error)}.") from None
    if claim is None:
        raise UserError.single(
            f"--resume: {folder}",
            "another process is training this run.",
            "Wait until it has ended, or end it (with a checkpoint: kill -TERM).",
        )
    return claim


def _chosen(blueprint: Blueprint) -> _Claim:
    try:
        return _free_folder(blueprint)
    except (OSError, RuntimeError) as error:  # a name that is too long; `~nobody`
        raise UserError.single(f"run folder: {blueprint.folder}", f"{one_line(error)}.") from None


def _free_folder(blueprint: Blueprint) -> _Claim:
    folder = Path(blueprint.folder).expanduser()
    number = 1
    while (claim := _claim_free(folder)) is None:
        if blueprint.run.folder is not None:
            what = "is not empty." if _is_taken(folder) else "another process trains in it already."
            hint = "Choose another folder or remove this one."
            raise UserError.single(f"run.folder: {folder}", what, hint)
        number += 1
        folder = Path(f"{blueprint.folder}-{number}").expanduser()
    return claim


def _claim_free(folder: Path) -> _Claim | None:
    """`_claim` of an empty folder, which is made; None: it is taken.

    Raises:
        UserError: it can't be made, or not be written.
    """
    if _is_taken(folder):
        return None
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        what = f"can't be made: {existing} is a file."
        raise UserError.single(f"run folder: {folder}", what, "Choose another folder.")
    if not os.access(existing, os.W_OK):
        raise UserError.single(f"run folder: {folder}", "can't be written.")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    claim = _claim(folder, is_new)
    if claim is not None and _is_taken(folder):  # by one that has ended in between
        os.close(claim.descriptor)
        return None
    return claim


def _claim(folder: Path, is_new: bool = False) -> _Claim | None:
    """None: another process has it. (Some file systems of several hosts have no such locks: then
    nobody is kept from it.)"""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        return _Claim(folder, descriptor, is_new)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            return _Claim(folder, descriptor, is_new)
    os.close(descriptor)  # who had it has removed it: there may be another one now
    return None


def resumed_folder(blueprint: Blueprint) -> Path:
    """The folder of the run that `config` started last: `run.folder`, or of the folders that its
    `run.name` got the one with the highest number.

    Raises:
        UserError: there is none, or its run is complete.
    """
    try:
        folder = Path(blueprint.folder).expanduser().absolute()
        folder.exists()
    except (OSError, RuntimeError) as error:
        raise UserError.single(f"run folder: {blueprint.folder}", f"{one_line(error)}.") from None
    if blueprint.run.folder is None:
        numbered = re.compile(rf"^{re.escape(folder.name)}(?:-(\d+))?$")
        matches = [m for p in folder.parent.glob("*") if (m := numbered.match(p.name))]
        if matches:
            newest = max(matches, key=lambda m: int(m.group(1) or 1))
            folder = folder.parent / newest.string
    if not _is_taken(folder):
        raise UserError.single(
            f"--resume: {folder}", "nothing to resume: there is no run.", "Start without --resume."
        )
    summary = trained_summary(folder)
    has_depths = any(own.depths for own in blueprint.stages.values())
    is_told = summary is not None and ("depths" in summary or not has_depths)
    if is_told and (folder / "report.html").exists():
        raise UserError.single(f"--resume: {folder}", "nothing to resume: the run is complete.")
    return folder


def trained_summary(folder: Path) -> dict[str, Any] | None:
    """What a run that has trained to its end has in `summary.json`, whether or not what comes after
    it was done; None: it hasn't.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "summary.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError.single(str(path), "is damaged: it is no JSON object.")
    return found


def _is_taken(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


class RunFolder:
    """Where a run's files are. What is written as it goes, trackers write (`trackers.py`)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def model(self) -> Path:
        """The best weights."""
        return self.path / "model"

    @property
    def bad_batches(self) -> Path:
        """Batches whose loss or gradient was not finite."""
        return self.path / "bad-batches"

    @property
    def logs(self) -> Path:
        """What ranks print."""
        return self.path / "logs"

    @property
    def profile(self) -> Path:
        """Traces of ranks, by torch's profiler."""
        return self.path / "profile"

    def write_config(self, blueprint: Blueprint) -> None:
        """`config.yaml`, in a folder that is made if it isn't there."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "config.yaml", dump_config(blueprint.config))

    def write_errors(self, errors: Mapping[str, Any]) -> None:
        """`errors.json`: the test split's mistakes."""
        text = json.dumps(errors, ensure_ascii=False, indent=1)
        write_atomically(self.path / "errors.json", text + "\n")

    def write_profiles(self, profiles: Sequence[Profile]) -> None:
        """`profile.json`: what the profiled steps took on every rank."""
        text = json.dumps([asdict(own) for own in profiles], indent=1)
        write_atomically(self.path / "profile.json", text + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """`summary.json`."""
        text = redact_urls(json.dumps(summary, indent=2))
        write_atomically(self.path / "summary.json", text + "\n")
