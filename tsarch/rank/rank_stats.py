"""What a rank knows at the end of a run (a file without torch: the driver reads it)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RankStats:
    """Counts and peaks of one rank."""

    stage_parameters: dict[str, int]
    """Parameters of the stage's model and of the tied embedding."""
    peak_memory_bytes: int
    """Device memory on a GPU, resident memory of the process elsewhere."""
    tied_max_abs_diff: float
    """Largest difference between any two replicas of the table."""
