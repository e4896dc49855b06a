"""What came to a student from its teachers, and which of it its passes read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsarch.records import IntArray


@dataclass(frozen=True)
class Boundary:
    """What came from the teachers for a micro-batch, and a spare state."""

    hidden: Tensor
    """(states + 1, teacher_width); a leaf whose gradient goes back, in `joint`."""
    predictions: Tensor | None
    """(states + 1, outputs), where they came along."""
    shown: Tensor
    """(states + 1, width) what else came of the teachers' inside; of no width, if nothing did."""


def fed_states(hidden: Tensor, fed_by: list[IntArray]) -> tuple[Tensor, list[IntArray]]:
    """The states that fed passes read, and per batch (windows, tokens) their rows among them: what
    came for other passes needs no bridge.

    Args:
        hidden: (states + 1, teacher_width); the last row is spare.
        fed_by: per batch (windows, tokens) rows of `hidden`; −1: not fed.
    """
    read = np.concatenate([own[own >= 0] for own in fed_by])
    rows, spare = np.unique(read), len(hidden) - 1
    if len(rows) == spare:
        return hidden, fed_by
    kept = torch.from_numpy(np.append(rows, spare)).to(hidden.device)
    among = [np.where(own >= 0, np.searchsorted(rows, own), -1) for own in fed_by]
    return hidden.index_select(0, kept), among
