"""A run behind a URL, as a folder on this machine: what predictions need of it is copied once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tsarch.data.cache import cache_root
from tsarch.errors import UserError, one_line
from tsarch.run.versions import CURRENT, VERSIONS, current_name

Files = dict[str, dict[str, Any]]
"""Path inside a run → what its file system says of the file."""
_URL = re.compile(r"[a-zA-Z][\w+.-]*(://|::)")
_NEEDED = re.compile(r"config\.yaml|(model|onnx)/.*")
"""Of a run: no checkpoints, curves or reports."""
_VOLATILE = ("atime", "nlink", "ino", "LastAccessed")
_TRIES = 3


def is_url(run: str) -> bool:
    """Whether a run is named by a URL."""
    return _URL.match(run) is not None


def local_run(run: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The run as it is named, or, if that is a URL of fsspec (`s3://bucket/run`), the folder of a
    copy of what predictions need. Copies are kept in `~/.cache/tsarch/runs` and taken again where
    nothing of the run has changed.

    Raises:
        UserError: the URL can't be read, or has no run.
    """
    name = os.fspath(run)
    if not is_url(name):
        return run
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(name)
        if "file" in _protocols(filesystem):
            return Path(root)
        return _copied(name, filesystem, root)
    except UserError:
        raise
    except ImportError as error:
        hint = "Install the package that it names."
        raise UserError.single(name, f"needs a package: {one_line(error)}.", hint) from None
    except Exception as error:  # file systems raise what they like
        hint = "Check the URL, the network and the credentials."
        raise UserError.single(name, f"can't be read: {one_line(error)}.", hint) from None


def _protocols(filesystem: Any) -> tuple[str, ...]:
    own = filesystem.protocol
    return (own,) if isinstance(own, str) else tuple(own)


def _copied(name: str, filesystem: Any, root: str) -> Path:
    """The folder of a run's copy, made if it isn't there.

    Raises:
        UserError: the URL has no run, or one that changes all the time.
    """
    files = _files(name, filesystem, root)
    folder = cache_root(None) / "runs"
    for _ in range(_TRIES):
        copy = folder / _key(name, files)
        if copy.is_dir():
            return copy
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
            _download(filesystem, root, files, Path(part) / "run")
            before, files = files, _files(name, filesystem, root)
            if _key(name, before) == _key(name, files):
                return _put(Path(part) / "run", copy)
    raise UserError.single(name, "changes while it is read.", "Wait until it is whole.")


def _files(name: str, filesystem: Any, root: str) -> Files:
    """The files of a run that are needed, as they are now.

    Raises:
        UserError: there is no run.
    """
    root = root.rstrip("/")
    filesystem.invalidate_cache()
    found = {
        path.removeprefix(f"{root}/"): about
        for path, about in filesystem.find(root, detail=True).items()
    }
    start = _version(filesystem, root) if CURRENT in found else ""
    files = {
        path: about
        for path, about in found.items()
        if path == CURRENT or (path.startswith(start) and _NEEDED.fullmatch(path[len(start) :]))
    }
    if not any(path.endswith("config.yaml") for path in files):
        raise UserError.single(name, "is not a finished run (config.yaml is missing).")
    return files


def _version(filesystem: Any, root: str) -> str:
    """Beginning of the names of a run's current version's files."""
    with tempfile.TemporaryDirectory() as folder:
        filesystem.get_file(f"{root}/{CURRENT}", os.path.join(folder, CURRENT))
        name = current_name(Path(folder))
    return f"{VERSIONS}/{name}/"


def _key(name: str, files: Files) -> str:
    """What names a copy: other files, sizes, times or checksums are another one."""
    kept = [
        (path, {key: str(value) for key, value in about.items() if key not in _VOLATILE})
        for path, about in sorted(files.items())
    ]
    return hashlib.sha256(json.dumps([name, kept], sort_keys=True).encode()).hexdigest()[:32]


def _download(filesystem: Any, root: str, files: Files, into: Path) -> None:
    for path in files:
        target = into / path
        target.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(f"{root.rstrip('/')}/{path}", str(target))


def _put(part: Path, copy: Path) -> Path:
    """Move a whole copy to its place, where another process may have put one at the same time."""
    try:
        part.rename(copy)
    except OSError:
        if not copy.is_dir():
            raise
        shutil.rmtree(part)
    return copy
