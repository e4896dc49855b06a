"""Learning-rate factor of a step: warm-up, then decay. A pure function."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate_factor(
    step: int, num_steps: int, warmup: float, decay: Literal["linear", "cosine", "constant"]
) -> float:
    """Factor in (0, 1] on the peak rate at `step` of `num_steps`.

    Rises linearly over the first `warmup` share of steps, then falls to (almost) zero at the
    last one; the first step already moves.
    """
    warmup_steps = round(warmup * num_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if decay == "constant":
        return 1.0
    left = (num_steps - step) / max(num_steps - warmup_steps, 1)
    if decay == "linear":
        return left
    return 0.5 * (1.0 - math.cos(math.pi * left))
