"""Which weights are the best, and when to look for better ones no more.

Of equally good weights the later are kept: they have learned more, and a score that doesn't differ
says nothing for the earlier.
"""

from __future__ import annotations

import math
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

    def __init__(
        self, task: Task, monitor: Monitor, patience: int | None, can_tell: bool = True
    ) -> None:
        """`patience`: validations without a better result after which training ends. `can_tell`:
        whether scores of the validation split can differ; if not, the last weights are kept, and
        patience doesn't end."""
        self.can_tell = can_tell
        self._task = task
        self._monitor: Monitor = monitor
        self._patience = patience
        self._best: Best | None = None
        self.num_worse = 0
        """Validations since one was better than all before."""

    @property
    def best(self) -> Best:
        """The best so far, of equal ones the last; there must have been a validation."""
        assert self._best is not None
        return self._best

    @property
    def patience_is_over(self) -> bool:
        """Whether to train no further."""
        return self._patience is not None and self.num_worse >= self._patience

    def score(self, evaluation: Evaluation) -> float:
        """What decides, as `evaluation.monitor` says; higher is better."""
        return selection_score(self._task, evaluation.metrics, self._monitor)

    def offer(self, evaluation: Evaluation, epoch: int) -> str:
        """Why the weights of this validation are to be kept; empty: they aren't."""
        best, own = self._best, self.score(evaluation)
        if not self.can_tell:
            reason = "the validation split can't tell"
        elif best is None or own > best.score or math.isnan(best.score):
            reason, self.num_worse = "best so far", 0
        else:
            reason = f"as good as epoch {best.epoch}, and later" if own == best.score else ""
            self.num_worse += 1
        if reason:
            self._best = Best(evaluation, own, epoch)
        return reason

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
