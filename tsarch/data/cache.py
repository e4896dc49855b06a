"""The folder of what needn't be made twice, and arrays kept in it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tsarch.config import DataConfig
from tsarch.errors import UserError, one_line
from tsarch.records import Array

Arrays = dict[str, Array]
DEFAULT_FOLDER = "~/.cache/tsarch"
_OWN_MODE = 0o700


def cache_root(folder: str | None) -> Path:
    """Folder of everything that is cached: `data.cache_folder`, or `~/.cache/tsarch`. It may hold
    private texts: who makes it alone may look into it.

    Raises:
        UserError: it can't be made or written.
    """
    name = folder or DEFAULT_FOLDER
    where = f"data.cache_folder: {name}"
    try:
        path = Path(name).expanduser()
        if not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=_OWN_MODE, exist_ok=True)
        elif folder is None and path.stat().st_uid == os.getuid():
            path.chmod(_OWN_MODE)  # of an older version
    except (OSError, RuntimeError) as error:  # RuntimeError: `~nobody`
        raise UserError.single(where, f"can't be made: {one_line(error)}.") from None
    if not os.access(path, os.W_OK):
        raise UserError.single(where, "can't be written.", "Choose another folder.")
    return path


@contextmanager
def table_cache(data: DataConfig) -> Iterator[dict[str, Any]]:
    """Within, options of `load_dataset` that say where it keeps its copy: in the cache, or, with
    `data.cache: false`, in memory, with a folder that is gone afterwards."""
    if data.cache:
        yield {"cache_dir": str(cache_root(data.cache_folder))}
        return
    with tempfile.TemporaryDirectory(prefix="tsarch-") as folder:
        yield {"cache_dir": folder, "keep_in_memory": True}


@cache
def code_digest(*folders: str) -> str:
    """A hash of tsarch's own files, or of those in some of its folders."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for folder in folders or ("",):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def cache_note(data: DataConfig) -> str:
    """Where the tokenised data is kept, for people."""
    if not data.cache:
        return "nothing of it is kept"
    return f"kept in {data.cache_folder or DEFAULT_FOLDER}; data.cache: false keeps nothing"


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
