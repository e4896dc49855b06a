"""What a tracker is: told what a run does, it keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tsarch.blueprint import Blueprint
from tsarch.config import Mode, TrackingConfig
from tsarch.config_changes import flat_config
from tsarch.records import TickReport
from tsarch.telling.step_table import StepRecord
from tsarch.topology import Topology

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker is told of."""

    folder: Path
    name: str
    topology: Topology
    tracking: TrackingConfig
    config: Mapping[str, Any]
    """Dotted key → value, without the credentials of URLs."""
    is_traced: bool = False
    """Whether reports of ticks have every instruction."""

    @classmethod
    def of(cls, folder: Path, blueprint: Blueprint) -> TrackedRun:
        """The run of a blueprint in this folder."""
        return cls(
            folder,
            blueprint.run.name,
            blueprint.topology,
            blueprint.tracking,
            flat_config(blueprint.config),
            blueprint.run.trace,
        )


class Tracker(Protocol):
    """Is told what a run does while it does it, and keeps it.

    `tracking.trackers` names what makes one: a class or function that takes the `TrackedRun`,
    called when the run starts and each time it goes on after a failure or on `--resume`. All
    methods are called in one thread, not the run's, in the order in which things happen: a tracker
    may take its time. One that raises an error is told nothing more; the run says so and goes on.
    """

    def ticks(self, reports: Sequence[TickReport], epoch: int) -> None:
        """What the ranks report of some ticks, as it comes in; with every instruction if the run is
        traced."""

    def step(self, row: StepRecord) -> None:
        """A step is complete. Steps come in order, each once; `None` is a number that isn't
        finite."""

    def evaluation(self, split: str, step: int, metrics: Mapping[Mode, Metrics]) -> None:
        """Metrics of all modes on a split, after `step` steps."""

    def texts(self, when: str, texts: Sequence[Mapping[str, str]]) -> None:
        """Generated texts of the test split, `before` or `after` training."""

    def rewind(self, step: int, num_evaluations: int) -> None:
        """The run goes on from a checkpoint, before anything else is told: forget the steps from
        `step` on, which will come again, and all evaluations but the first so many."""

    def close(self, is_complete: bool) -> None:
        """The run has ended, complete or not."""


def step_points(row: StepRecord) -> dict[str, float]:
    """A point of `train/…` for each number of a step."""
    return {
        f"train/{name}": float(value)
        for name, value in row.items()
        if value is not None and name not in ("step", "epoch")
    }


def evaluation_points(split: str, metrics: Mapping[Mode, Metrics]) -> dict[str, float]:
    """A point of `SPLIT/MODE/METRIC` for each."""
    return {
        f"{split}/{mode}/{name}": value
        for mode, values in metrics.items()
        for name, value in values.items()
    }
