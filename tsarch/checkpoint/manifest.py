"""`manifest.json`: what makes a checkpoint complete. Written last, with every file's size and hash.

A folder without a manifest, or with one that doesn't fit its files, is not a checkpoint.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1
"""Number of the layout; a reader refuses others."""
_PLAIN = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All files of a checkpoint."""

    step: int
    files: dict[str, FileEntry]
    """Path inside the checkpoint → what the file must be."""
    score: float | None = None
    """Main metric of the validation at this very point; None: there was none."""

    def text(self) -> str:
        """As JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """The inverse of `text`.

        Raises:
            ValueError: not a manifest of this format, or a path that leads out of the checkpoint.
        """
        try:
            raw: Any = json.loads(text)
        except RecursionError:
            raise ValueError("is nested too deeply") from None
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise ValueError(f"is not a manifest of format {FORMAT}")
        try:
            files = {
                str(name): FileEntry(int(entry["bytes"]), str(entry["sha256"]))
                for name, entry in raw["files"].items()
            }
            score = None if raw["score"] is None else float(raw["score"])
            manifest = cls(int(raw["step"]), files, score)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"is not a manifest: {error!r}") from None
        for name in manifest.files:
            check_name(name)
        return manifest


def check_name(name: str) -> None:
    """A path of plain names, relative and downward.

    Raises:
        ValueError: anything else.
    """
    if not all(_PLAIN.fullmatch(part) for part in name.split("/")):
        raise ValueError(f"names a file {name!r} outside of the checkpoint")
