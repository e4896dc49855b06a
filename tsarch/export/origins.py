"""Where the weights of a run come from: the config of the run that was the first of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tsarch.yaml_text import read_yaml

_CONFIG = "config.yaml"


def first_config(folder: Path) -> dict[str, Any] | None:
    """The raw config of the run that a run was started from (`run.start_from`), and that one from
    another, down to one that was started from none; None: one of them isn't there any more.

    Versions of a run lie beside one another, wherever the run has been moved to.
    """
    raw, seen = _raw(folder), {folder}
    while (start := raw["run"].get("start_from")) is not None:
        named = Path(start).parent
        found = (own for own in (named, folder.parent / named.name) if (own / _CONFIG).is_file())
        folder = next(found, folder)
        if folder in seen:
            return None
        seen.add(folder)
        raw = _raw(folder)
    return raw


def _raw(folder: Path) -> dict[str, Any]:
    raw: dict[str, Any] = read_yaml((folder / _CONFIG).read_text(encoding="utf-8"))
    return raw
