"""What Ray sends of a folder with a job: by Ray's own rules, so that what is told is what happens.

Ray packs the folder, leaves out what `.gitignore` and `.rayignore` name and a few folders besides,
and refuses a package that is larger than its message limit.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray._private import ray_constants
from ray._private.runtime_env import packaging

from tsarch.errors import Mistake

_IGNORE_FILES = (".gitignore", ".rayignore")
_SHOWN = 5
_QUIET = logging.Logger("packing", logging.ERROR)
"""Ray warns of every large file; `too_large` names them together."""


@dataclass(frozen=True)
class WorkingFolder:
    """A folder that goes with a job."""

    path: Path
    """Absolute."""
    sizes: dict[Path, int]
    """File that is sent → bytes."""

    @classmethod
    def look(cls, path: Path) -> WorkingFolder:
        """Find what is sent of it."""
        path, sizes = path.absolute(), {}

        def note(own: Path) -> None:
            if own.is_file():
                sizes[own] = own.stat().st_size

        excludes = [packaging._get_excludes(path, ray_constants.get_runtime_env_default_excludes())]
        packaging._dir_travel(path, excludes, note, include_gitignore=True, logger=_QUIET)
        return cls(path, sizes)

    @property
    def num_bytes(self) -> int:
        """Of all that is sent, before it is packed."""
        return sum(self.sizes.values())

    def holds(self, path: Path) -> bool:
        """Whether a file, or something of a folder, is sent."""
        return path in self.sizes or any(own.is_relative_to(path) for own in self.sizes)

    def why_hidden(self, path: Path) -> str:
        """What keeps something that lies in the folder from being sent."""
        inner = [p for p in (path, *path.parents) if p.is_relative_to(self.path)]
        for folder in reversed(inner):
            for name in _IGNORE_FILES if folder.is_dir() else ():
                ignores: Any = packaging._get_ignore_file(folder, name)
                if ignores is not None and any(map(ignores, inner)):
                    return str((folder / name).relative_to(self.path))
        return "Ray, which never sends " + ", ".join(
            ray_constants.get_runtime_env_default_excludes()
        )

    def too_large(self) -> Mistake | None:
        """What to say if Ray would refuse the package, with what is large in it."""
        limit = packaging.GCS_STORAGE_MAX_SIZE
        if self.num_bytes < limit or (packed := self._packed_bytes()) < limit:
            return None
        shares: Counter[str] = Counter()
        for path, size in self.sizes.items():
            first, *rest = path.relative_to(self.path).parts
            shares[f"{first}/{rest[0]}" if rest else first] += size
        largest = ", ".join(f"{name} ({_megabytes(n)})" for name, n in shares.most_common(_SHOWN))
        return Mistake(
            f"working folder: {self.path}",
            f"is too large to be sent with a job: {_megabytes(packed)} when packed, and Ray takes "
            f"less than {_megabytes(limit)}. The largest: {largest}.",
            "Name what the run doesn't need in a file .rayignore there (as in .gitignore); put "
            "data and models where all hosts find them, and name them by absolute paths.",
        )

    def _packed_bytes(self) -> int:
        excludes = ray_constants.get_runtime_env_default_excludes()
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "package.zip")
            packaging._zip_files(
                str(self.path), excludes, str(target), include_gitignore=True, logger=_QUIET
            )
            return target.stat().st_size


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
