"""What the driver knows at a cut: `progress.json` of a checkpoint."""

from __future__ import annotations

from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from tsarch.errors import one_line
from tsarch.topology import STAGES, Graph, Topology

PROGRESS = "progress.json"
CONFIG = "config.yaml"


class Record(BaseModel):
    """Strict and frozen: what doesn't fit was not written by tsarch."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BestRecord(Record):
    """The best validation so far; its weights are in the checkpoint's `model/`."""

    metrics: dict[str, dict[str, float]]
    joint_weight: float
    score: float
    epoch: int
    num_worse: int


class RanksRecord(Record):
    """The ranks that took the checkpoint."""

    runner: str
    teacher_replicas: NonNegativeInt
    student_replicas: NonNegativeInt
    teacher_sequence_parallel: PositiveInt = 1

    @model_validator(mode="after")
    def _there_are_some(self) -> Self:
        if self.teacher_replicas + self.student_replicas == 0:
            raise ValueError("no ranks took it")
        return self

    @property
    def topology(self) -> Topology:
        """Their stages and numbers."""
        counts = dict(zip(STAGES, (self.teacher_replicas, self.student_replicas), strict=True))
        there = {stage: count for stage, count in counts.items() if count}
        return Topology(Graph.of(there), tuple(there.values()))


class DriverState(Record):
    """Where the run is."""

    epoch: NonNegativeInt
    """Epoch that goes on, from 0."""
    tick: NonNegativeInt
    """The epoch's next tick."""
    epoch_done: bool
    """Whether the epoch is over, its validation too; `tick` doesn't count then."""
    ranks: RanksRecord
    data: str
    """Fingerprint of the tokenised data and the labels."""
    models: str = ""
    """Fingerprint of the models' configs and of what is read from their weights again; empty: it
    starts from none."""
    before: dict[str, dict[str, float]] | None
    """Metrics of the test split before training, by mode."""
    best: BestRecord | None
    table: dict[str, Any]
    """`StepTable.state`: totals, and steps that not all ranks had reported."""
    num_rows: NonNegativeInt
    """Lines of `metrics.jsonl` up to here."""
    num_evaluations: NonNegativeInt
    """Lines of `evaluations.jsonl` up to here."""
    wall_s: float
    """Seconds of the run so far."""
    resumes: NonNegativeInt
    """How often the run was resumed before."""


def parse_progress(text: str) -> DriverState:
    """Read `progress.json`.

    Raises:
        ValueError: it is not one.
    """
    try:
        return DriverState.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(f"{PROGRESS}: {one_line(error)}") from None
