"""Results of a long suite, written case by case, so that a run that was ended goes on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any


class OutcomeLog:
    """A file of JSON lines: what the results are of, then a line for each case.

    What a file holds of another commit, config or number of steps is dropped.
    """

    def __init__(self, path: Path, **of: Any) -> None:
        self._path = path
        header = json.dumps({"commit": _commit(), **of})
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if lines[:1] != [header]:
            lines = [header]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(header + "\n", encoding="utf-8")
        self.done: list[dict[str, Any]] = [json.loads(line) for line in lines[1:]]
        """The results that are there."""

    def add(self, outcome: dict[str, Any]) -> None:
        """Write one result."""
        self.done.append(json.loads(json.dumps(outcome)))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(outcome) + "\n")

    def remove(self) -> None:
        """The suite is complete and its results are elsewhere."""
        self._path.unlink()


def _commit() -> str:
    """The commit that is tested; empty outside of a git repository."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
