"""Where checkpoints lie: a local folder or any fsspec URL, with a folder `step-N` each.

On a local disk a checkpoint is written to `step-N.partial`, synced, and renamed when its manifest
is there. Object stores can't rename a folder: there it is complete once the manifest, put last,
exists.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tsarch.checkpoint.manifest import MANIFEST, FileEntry, Manifest, check_name
from tsarch.errors import UserError, one_line

_STEP = re.compile(r"^step-(\d+)$")
_PARTIAL = ".partial"


class Store:
    """Reads and writes the checkpoints of one run."""

    def __init__(self, url: str) -> None:
        """`url`: a folder, or a URL such as `s3://bucket/run` (the library of its protocol must be
        installed; it takes its credentials from where it always does).

        Raises:
            UserError: nothing can be read from such a URL.
        """
        self.url = url
        try:
            filesystem, root = fsspec.core.url_to_fs(url)
        except Exception as error:  # every protocol has errors of its own
            raise UserError.single(f"checkpoint.folder: {url}", f"{one_line(error)}.") from None
        self._fs: Any = filesystem
        self._root = str(root).rstrip("/")
        self.is_local = isinstance(filesystem, LocalFileSystem)

    @property
    def local_folder(self) -> Path | None:
        """The folder, if it is one of this host's file systems."""
        return Path(self._root) if self.is_local else None

    # Writing: `begin`, `put` by every rank, `commit`.

    def begin(self, step: int) -> None:
        """Make room for the files of a checkpoint; an older one of this number is void now."""
        if self.is_local:
            shutil.rmtree(self._partial(step), ignore_errors=True)
            Path(self._partial(step)).mkdir(parents=True)
        else:
            self.delete(step)

    def put(self, step: int, name: str, write: Callable[[Path], object]) -> FileEntry:
        """Let `write` make a file, and bring it to the disk or the store."""
        check_name(name)
        if self.is_local:
            path = Path(self._partial(step)) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
            _sync(path)
            return _entry(path)
        with tempfile.TemporaryDirectory(prefix="tsarch-") as folder:
            path = Path(folder) / "file"
            write(path)
            entry = _entry(path)
            self._fs.put_file(str(path), f"{self._folder(step)}/{name}")
        return entry

    def commit(self, manifest: Manifest) -> None:
        """Make a checkpoint whose files are all there complete.

        Raises:
            OSError: they aren't.
        """
        step = manifest.step
        self.put(step, MANIFEST, lambda path: path.write_text(manifest.text(), encoding="utf-8"))
        if not self.is_local:
            return
        self._check_shared(manifest)
        partial, final = Path(self._partial(step)), Path(self._folder(step))
        for folder in {partial, *(p for p in partial.rglob("*") if p.is_dir())}:
            _sync(folder)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(final.parent)

    def _check_shared(self, manifest: Manifest) -> None:
        """Whether what ranks on other hosts have put is here.

        Raises:
            OSError: it isn't.
        """
        for name, entry in manifest.files.items():
            path = Path(self._partial(manifest.step)) / name
            if not path.exists() or path.stat().st_size != entry.bytes:
                raise OSError(f"{path} is not here as it was written: do all hosts share it?")

    def delete(self, step: int) -> None:
        """Remove a checkpoint, its manifest first."""
        if self.is_local:
            (Path(self._folder(step)) / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self._folder(step), ignore_errors=True)
            return
        if self._fs.exists(f"{self._folder(step)}/{MANIFEST}"):
            self._fs.rm_file(f"{self._folder(step)}/{MANIFEST}")
        if self._fs.exists(self._folder(step)):
            self._fs.rm(self._folder(step), recursive=True)

    def sweep(self) -> None:
        """Remove what writers that died have left. Nobody may be writing here."""
        if self.is_local and Path(self._root).is_dir():
            for path in Path(self._root).glob(f"step-*{_PARTIAL}"):
                shutil.rmtree(path, ignore_errors=True)

    # Reading.

    def steps(self) -> list[int]:
        """Numbers of all checkpoints that have a manifest, ascending."""
        self._fs.invalidate_cache()
        if not self._fs.exists(self._root):
            return []
        names = (
            str(path).rstrip("/").rsplit("/", 1)[-1] for path in self._fs.ls(self._root, False)
        )
        found = sorted(int(m.group(1)) for m in map(_STEP.match, names) if m)
        return [s for s in found if self._fs.exists(f"{self._folder(s)}/{MANIFEST}")]

    def manifest(self, step: int) -> Manifest:
        """The manifest of a checkpoint.

        Raises:
            ValueError: it is damaged.
        """
        manifest = Manifest.parse(self.read_text(step, MANIFEST))
        if manifest.step != step:
            raise ValueError(f"{MANIFEST} is that of step {manifest.step}")
        return manifest

    def damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint's files (all are read); None: nothing."""
        try:
            manifest = self.manifest(step)
            for name, entry in sorted(manifest.files.items()):
                path = f"{self._folder(step)}/{name}"
                if not self._fs.exists(path):
                    return f"{name} is missing"
                if int(self._fs.size(path)) != entry.bytes:
                    return f"{name} has {self._fs.size(path)} bytes, not {entry.bytes}"
                with self._fs.open(path, "rb") as file:
                    if _sha256(file) != entry.sha256:
                        return f"{name} has another content than was written (SHA-256)"
        except (OSError, ValueError) as error:
            return one_line(error)
        return None

    def read_text(self, step: int, name: str) -> str:
        """A small file of a checkpoint."""
        check_name(name)
        raw: bytes = self._fs.cat_file(f"{self._folder(step)}/{name}")
        return raw.decode("utf-8")

    def fetch(self, step: int, names: Iterable[str], into: Path) -> dict[str, Path]:
        """Local paths of some files: the files themselves, or copies in `into`."""
        paths = {}
        for name in names:
            check_name(name)
            if self.is_local:
                paths[name] = Path(self._folder(step)) / name
                continue
            paths[name] = into / name
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(f"{self._folder(step)}/{name}", str(paths[name]))
        return paths

    def place(self, step: int) -> str:
        """What to call a checkpoint in messages."""
        return f"{self.url.rstrip('/')}/step-{step}"

    def _folder(self, step: int) -> str:
        return f"{self._root}/step-{step}"

    def _partial(self, step: int) -> str:
        return self._folder(step) + _PARTIAL


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(path.stat().st_size, _sha256(file))


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Bring a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
