"""Which of a run's versions is read: `RUN/versions/NAME/` are whole run folders, and
`RUN/current.json` names one of them. A run that was never refitted has neither."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from tsarch.errors import UserError

CURRENT = "current.json"
VERSIONS = "versions"
_NAME = re.compile(r"\w[\w.-]*")


def current_folder(run: Path) -> Path:
    """The folder to read of a run: its current version, or the run's own if it has none. A
    version's folder is its own.

    Raises:
        UserError: `current.json` is damaged, or names a version that isn't there.
    """
    name = current_name(run)
    if name is None:
        return run
    folder = version_folder(run, name)
    if not folder.is_dir():
        what = f"names the version {name}, which is not there ({folder})."
        hint = "Copy the run folder whole, or choose a version: tsarch rollback RUN VERSION."
        raise UserError.single(str(run / CURRENT), what, hint)
    return folder


def current_name(run: Path) -> str | None:
    """Name of a run's current version; None: it was never refitted.

    Raises:
        UserError: `current.json` is damaged.
    """
    file = run / CURRENT
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["version"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError):
        name = None
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        hint = "Choose the version to use: tsarch rollback RUN VERSION."
        raise UserError.single(str(file), "can't be read: it must name a version.", hint)
    return name


def version_folder(run: Path, name: str) -> Path:
    """Where a version of a run is."""
    return run / VERSIONS / name


def write_durably(path: Path, text: str) -> None:
    """Write a whole file or nothing, so that it is there after a power cut too."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
