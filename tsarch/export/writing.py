"""A folder that appears whole or not at all."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tsarch.errors import UserError


def check_target(target: Path) -> None:
    """Check that a folder can be made there.

    Raises:
        UserError: something is there, or nothing can be written.
    """
    where = str(target)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError.single(where, "is there, and is no folder.", "Name a new one.")
    if target.is_dir() and any(target.iterdir()):
        raise UserError.single(where, "is not empty.", "Name a new folder, or empty it.")
    parent = target.absolute().parent
    if not parent.is_dir():
        raise UserError.single(str(target.parent), "is not a folder.", "Make it first.")


def check_room(target: Path, needed: int) -> None:
    """Check that so many bytes fit there.

    Raises:
        UserError: they don't.
    """
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed:
        what = f"needs about {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free there."
        raise UserError.single(str(target), what, "Make room, or choose another disk.")


@contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place once all is written; if it fails, nothing
    is left.

    Raises:
        UserError: it can't be written.
    """
    new = None
    try:
        new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
        yield new
        if target.is_dir():
            target.rmdir()  # empty
        new.chmod(0o755)
        new.rename(target)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"{error.strerror or error}"
        hint = "Make room, or choose another disk." if full else ""
        raise UserError.single(str(target), f"can't be written: {what}.", hint) from None
    finally:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
