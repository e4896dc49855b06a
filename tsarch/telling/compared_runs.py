"""Runs read for a comparison: each from its folder, finished or not."""

from __future__ import annotations

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
from tsarch.telling.intact import intact
from tsarch.telling.run_rows import Row, evaluation_rows, read_summary, step_rows

FIGURES: Mapping[str, tuple[str, ...]] = {
    "whole run": ("wall_s",),
    "teacher ranks busy": ("stage_busy_share", "teacher"),
    "student ranks busy": ("stage_busy_share", "student"),
    "idle (bubble fraction)": ("bubble_fraction",),
    "real tokens of the teacher": ("real_share", "teacher"),
    "real tokens of the student": ("real_share", "student"),
    "peak memory of a teacher rank": ("peak_memory_bytes", "teacher"),
    "peak memory of a student rank": ("peak_memory_bytes", "student"),
    "link, a step": ("link_bytes_per_step",),
    "tied exchange, a step": ("tied_bytes_per_step",),
    "teacher replicas": ("teacher", "replicas"),
    "student replicas": ("student", "replicas"),
    "restarts": ("restarts",),
}
"""Numbers that are compared, and their places in `summary.json`."""


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
    keys = flat_config(config)
    task = make_task(keys["task.name"], ())
    evaluations = evaluation_rows(folder)
    return ComparedRun(
        label,
        keys["task.name"],
        keys,
        read_summary(folder, tuple(FIGURES.values())),
        step_rows(folder),
        [row for row in evaluations if row["split"] == "validation"],
        _digests(folder / "model"),
        task.main_metric,
        task.lower_is_better,
    )


def _digests(model: Path) -> Mapping[str, str]:
    """Of the data that the weights were trained on; none where there are none yet."""
    path = model / "task.json"
    if not path.is_file():
        return {}
    with intact(path):
        return load_task(model).data
