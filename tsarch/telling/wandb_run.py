"""Weights & Biases: a run there for each run here. The one file that imports wandb.

Key and server are those of wandb's own environment variables (`WANDB_API_KEY`, `WANDB_BASE_URL`,
`WANDB_ENTITY`).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial

import wandb

from tsarch.telling.once import Once, Points
from tsarch.telling.tracker import TrackedRun


class _WandbRun:
    """A run at Weights & Biases, online or in the folder `wandb` of the run."""

    def __init__(self, run: TrackedRun, known: str | None) -> None:
        self.id = known or secrets.token_hex(4)
        self._run = wandb.init(
            project=run.tracking.project,
            name=run.name,
            id=self.id,
            resume="allow",
            dir=str(run.folder),
            mode=run.tracking.wandb_mode,
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def add(self, points: Sequence[Points]) -> None:
        """Over our steps and not wandb's own, which count calls."""
        for step, values in points:
            self._run.log({"step": step, **values})

    def close(self, is_complete: bool) -> None:
        """A run that isn't complete counts as failed there, until it goes on."""
        self._run.finish(exit_code=0 if is_complete else 1)


def open_wandb(run: TrackedRun) -> Once:
    """The tracker."""
    return Once(run, "wandb", partial(_WandbRun, run))
