"""Which weights are the best, and when to look for better ones no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from tsarch.checkpoint.driver_state import BestRecord
from tsarch.config import Mode, Monitor
from tsarch.run.evaluate import Evaluation, selection_score
from tsarch.tasks.base import Metrics, Task


@dataclass(frozen=True)
class Best:
    """The best validation so far."""

    evaluation: Evaluation
    score: float
    epoch: int
    """From 1."""


class Selection:
    """Compares validations."""

    def __init__(self, task: Task, monitor: Monitor, patience: int | None) -> None:
        """`patience`: validations without a better result after which training ends."""
        self._task = task
        self._monitor: Monitor = monitor
        self._patience = patience
        self._best: Best | None = None
        self.num_worse = 0
        """Validations since the best."""

    @property
    def best(self) -> Best:
        """The best so far; there must have been a validation."""
        assert self._best is not None
        return self._best

    @property
    def patience_is_over(self) -> bool:
        """Whether to train no further."""
        return self._patience is not None and self.num_worse >= self._patience

    def score(self, evaluation: Evaluation) -> float:
        """What decides, as `evaluation.monitor` says; higher is better."""
        return selection_score(self._task, evaluation.metrics, self._monitor)

    def offer(self, evaluation: Evaluation, epoch: int) -> bool:
        """Whether this validation is better than all before."""
        own = self.score(evaluation)
        if self._best is not None and own <= self._best.score:
            self.num_worse += 1
            return False
        self._best, self.num_worse = Best(evaluation, own, epoch), 0
        return True

    def record(self) -> BestRecord | None:
        """For a checkpoint."""
        if self._best is None:
            return None
        return BestRecord(
            metrics=cast(dict[str, Metrics], self._best.evaluation.metrics),
            joint_weight=self._best.evaluation.joint_weight,
            score=self._best.score,
            epoch=self._best.epoch,
            num_worse=self.num_worse,
        )

    def restore(self, record: BestRecord | None) -> None:
        """Go on from a checkpoint's record."""
        if record is not None:
            metrics = cast(dict[Mode, Metrics], record.metrics)
            evaluation = Evaluation(metrics, record.joint_weight)
            self._best, self.num_worse = (
                Best(evaluation, record.score, record.epoch),
                record.num_worse,
            )
