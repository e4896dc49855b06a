"""What is kept of each refit: `RUN/refits/NAME/refit.json`, with its rows beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tsarch.errors import UserError, one_line
from tsarch.run.versions import write_durably

RECORD = "refit.json"
Comparison = Mapping[str, Mapping[str, Any]]
"""`old` and `new` → what they score."""


@dataclass(frozen=True)
class Record:
    """A refit, from the moment on that it begins to train."""

    version: str
    parent: str
    """The version that it goes on from."""
    created: str
    source: str
    """Where the new rows come from."""
    fingerprint: str
    """Of what the new rows say."""
    request: Mapping[str, Any]
    """Options of the call."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """How many rows are for what."""
    decided: str | None = None
    """When; None: it isn't yet."""
    accepted: bool | None = None
    reason: str = ""
    """Why it was taken, or not."""
    metric: str = ""
    """What decides."""
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Data (`test`, `held_out`) → version (`old`, `new`) → what decides."""
    metrics: Mapping[str, Comparison] = field(default_factory=dict)
    """The same with all modes' metrics."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What took how long."""

    def write(self, folder: Path) -> None:
        """Keep it."""
        write_durably(folder / RECORD, json.dumps(asdict(self), indent=2) + "\n")


def read_record(folder: Path) -> Record | None:
    """The record in a folder; None: a refit was ended before it wrote one.

    Raises:
        UserError: it is damaged.
    """
    file = folder / RECORD
    try:
        return Record(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        what = f"can't be read: {one_line(error)}."
        raise UserError.single(str(file), what, "Restore it from a copy of the run.") from None


def utc_now() -> str:
    """For records."""
    return datetime.now(UTC).isoformat(timespec="seconds")
