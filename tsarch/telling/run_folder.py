"""The run folder: `config.yaml`, `metrics.jsonl`, `evaluations.jsonl`, `tensorboard/`,
`trace.json`, `profile.json`, `summary.json`, `model/`. (`report.html` is made from these:
`telling/report.py`.)"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tsarch.blueprint import Blueprint
from tsarch.config_loading import dump_config
from tsarch.errors import UserError, one_line
from tsarch.profiled import Profile
from tsarch.redaction import redact_urls


def choose_folder(blueprint: Blueprint) -> Path:
    """A folder of the run's own: never one that holds something already.

    `run.name` gets a number if its folder is taken; an explicit `run.folder` must be free.

    Raises:
        UserError: `run.folder` is taken or can't be made.
    """
    try:
        return _free_folder(blueprint)
    except (OSError, RuntimeError) as error:  # a name that is too long; `~nobody`
        raise UserError.single(f"run folder: {blueprint.folder}", f"{one_line(error)}.") from None


def _free_folder(blueprint: Blueprint) -> Path:
    folder = Path(blueprint.folder).expanduser()
    if blueprint.run.folder is not None and _is_taken(folder):
        raise UserError.single(
            f"run.folder: {folder}", "is not empty.", "Choose another folder or remove this one."
        )
    number = 2
    while _is_taken(folder):
        folder = Path(f"{blueprint.folder}-{number}").expanduser()
        number += 1
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        what = f"can't be made: {existing} is a file."
        raise UserError.single(f"run folder: {folder}", what, "Choose another folder.")
    if not os.access(existing, os.W_OK):
        raise UserError.single(f"run folder: {folder}", "can't be written.")
    return folder.absolute()


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
    if (folder / "summary.json").exists():
        raise UserError.single(f"--resume: {folder}", "nothing to resume: the run is complete.")
    return folder


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
