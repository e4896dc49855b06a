"""Which checkpoints to keep. A pure function."""

from __future__ import annotations

from collections.abc import Mapping


def superseded(scores: Mapping[int, float | None], keep_last: int, keep_best: int) -> list[int]:
    """Steps of the checkpoints to delete, ascending.

    Kept are the `keep_last` newest and, of those that were validated, the `keep_best` with the
    highest score (of equal ones the newest).

    Args:
        scores: step → score on validation, or None where there was none.
    """
    newest = sorted(scores)[-keep_last:]
    validated = [(score, step) for step, score in scores.items() if score is not None]
    best = [step for _, step in sorted(validated, reverse=True)[:keep_best]]
    return sorted(set(scores) - set(newest) - set(best))
