"""Whether a new version is taken in place of the old one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tsarch.config import Monitor
from tsarch.run.evaluate import Evaluation, selection_score
from tsarch.tasks.base import Task

_ROUNDING = 1e-9
TEST, HELD_OUT = "test", "held_out"
_TITLES = {TEST: "old test set", HELD_OUT: "held-out new data"}


@dataclass(frozen=True)
class Pair:
    """What the old version and the new one score on the same rows."""

    old: Evaluation
    new: Evaluation


@dataclass(frozen=True)
class Verdict:
    """Whether the new version is taken."""

    accepted: bool
    reason: str
    scores: dict[str, dict[str, float]]
    """Data → version → the selection metric."""


def judge(task: Task, monitor: Monitor, measured: Mapping[str, Pair], margin: float) -> Verdict:
    """A new version is taken if it is at most `margin` points worse on the old test set, no worse
    on the held-out new data, and better there if it is worse on the old test set at all: what is
    lost must buy something, and labels at random buy nothing. A point is a hundredth of full marks;
    of a metric that is best when it is lowest, such as perplexity, one percent."""
    scores: dict[str, dict[str, float]] = {}
    told, bad = [], []
    all_lost: dict[str, float] = {}
    for name, pair in measured.items():
        own = {
            version: selection_score(task, evaluation.metrics, monitor)
            for version, evaluation in (("old", pair.old), ("new", pair.new))
        }
        sign = -1.0 if task.lower_is_better else 1.0
        scores[name] = {version: sign * value for version, value in own.items()}
        lost = _points_lost(task, own["old"], own["new"])
        all_lost[name] = lost
        allowed = margin if name == TEST else 0.0
        told.append(_told(name, scores[name], lost))
        if not lost <= allowed + _ROUNDING:  # NaN is worse
            limit = f"more than the margin of {margin:g}" if name == TEST else "worse than the old"
            bad.append(f"{told[-1]}: {limit}")
    buys_nothing = all_lost.get(HELD_OUT, -math.inf) >= -_ROUNDING
    if not bad and all_lost[TEST] > _ROUNDING and buys_nothing:
        bad.append(f"{'; '.join(told)}: nothing is gained for what is lost")
    return Verdict(not bad, "; ".join(bad or told), scores)


def _points_lost(task: Task, old: float, new: float) -> float:
    """How much worse the new score is; higher scores are better."""
    if math.isnan(old):
        return 0.0 if not math.isnan(new) else math.nan
    if task.lower_is_better:
        return (old - new) / max(abs(old), _ROUNDING) * 100
    return (old - new) / task.full_marks[task.main_metric] * 100


def _told(name: str, scores: Mapping[str, float], lost: float) -> str:
    change = "" if math.isnan(lost) else f" ({round(-lost, 1) + 0.0:+.1f} points)"
    return f"{_TITLES[name]} {scores['old']:.4f} → {scores['new']:.4f}{change}"
