"""What a run may take of a machine or cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Supply:
    """What there is to share out."""

    device: Literal["cpu", "cuda"]
    num_devices: int
    """Ranks for which there is room: GPUs, or on CPUs `cpus_per_rank` each."""
    num_cores: int
    """Cores for the threads of one rank of each stage, which may be on one host."""
