"""Runs read for a comparison: each from its folder, finished or not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsarch.config import Mode
from tsarch.config_changes import flat_config
from tsarch.config_loading import load_config
from tsarch.errors import Mistake, UserError
from tsarch.model_folder import load_task
from tsarch.tasks.registry import make_task
from tsarch.telling.json_files import read_rows

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ComparedRun:
    """What a run's folder says of it."""

    label: str
    task: str
    keys: Mapping[str, Any]
    """Dotted key → value of its config."""
    summary: Row | None
    """None: it has not finished."""
    steps: Sequence[Row]
    """Of `metrics.jsonl`."""
    evaluations: Sequence[Row]
    """Of the validation split, from `evaluations.jsonl`."""
    digests: Mapping[str, str]
    """Split → digest of its data; none before the first weights were kept."""
    main_metric: str
    lower_is_better: bool

    def metrics(self, split: str) -> Mapping[Mode, Mapping[str, float]]:
        """Mode → metrics with the best weights; of a run that has not finished, the last measured
        on validation and none on test."""
        if self.summary is not None:
            found = self.summary.get("after" if split == "test" else split, {})
        elif split == "test":
            found = {}
        else:
            found = self.evaluations[-1]["metrics"] if self.evaluations else {}
        return dict(found)


def read_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """The runs in these folders.

    Raises:
        UserError: some are none, or their files are damaged.
    """
    missing = [
        Mistake(str(folder), "is not a run's folder: it has no config.yaml.")
        for folder in folders
        if not (folder / "config.yaml").is_file()
    ]
    if missing:
        raise UserError(missing)
    return [_read_run(folder, label) for folder, label in zip(folders, _labels(folders))]


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of the folders above as make them different."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(own[-length:]) for own in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise UserError.single("tsarch compare", "the same run is named twice.", "Name others.")


def _read_run(folder: Path, label: str) -> ComparedRun:
    config = load_config(folder / "config.yaml")
    has_weights = (folder / "model" / "task.json").is_file()
    keys = flat_config(config)
    task = make_task(keys["task.name"], ())
    evaluations = read_rows(folder / "evaluations.jsonl")
    return ComparedRun(
        label,
        keys["task.name"],
        keys,
        _summary(folder / "summary.json"),
        read_rows(folder / "metrics.jsonl"),
        [row for row in evaluations if row["split"] == "validation"],
        load_task(folder / "model").data if has_weights else {},
        task.main_metric,
        task.lower_is_better,
    )


def _summary(path: Path) -> Row | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError.single(str(path), "is damaged: it is no JSON object.")
    return found
