"""The folder of what needn't be made twice, and arrays kept in it."""

from __future__ import annotations

import os
import threading
import zipfile
from pathlib import Path

import numpy as np

from tsarch.errors import UserError, one_line
from tsarch.records import Array

Arrays = dict[str, Array]


def cache_root(folder: str | None) -> Path:
    """Folder of everything that is cached: `data.cache_folder`, or `~/.cache/tsarch`.

    Raises:
        UserError: it can't be made or written.
    """
    name = folder or "~/.cache/tsarch"
    where = f"data.cache_folder: {name}"
    try:
        path = Path(name).expanduser()
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: `~nobody`
        raise UserError.single(where, f"can't be made: {one_line(error)}.") from None
    if not os.access(path, os.W_OK):
        raise UserError.single(where, "can't be written.", "Choose another folder.")
    return path


def stored_arrays(path: Path) -> Arrays | None:
    """What a cache file holds; None: it isn't there, or is damaged."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def store_arrays(path: Path, arrays: Arrays) -> None:
    """Write a cache file beside its place and rename it, so that another process finds the whole
    file or none."""
    own = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with own.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        own.replace(path)
    finally:
        own.unlink(missing_ok=True)
