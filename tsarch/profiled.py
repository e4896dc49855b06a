"""What a rank tells of steps that torch's profiler recorded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TimeSpent:
    """What some work of a profiled rank took, over all profiled ticks."""

    name: str
    """Stage and instruction, or operator."""
    number: int
    seconds: float
    """Of an instruction, waiting included; of an operator, without those that it calls."""
    flops: float
    """Of matrix products and attention; 0: it has none."""


@dataclass(frozen=True)
class Profile:
    """What torch's profiler saw of a rank."""

    rank: int
    num_ticks: int
    seconds: float
    """From the first instruction's start to the last one's end."""
    device: str
    """Name of the GPU; `cpu`."""
    threads: int
    instructions: tuple[TimeSpent, ...]
    operators: tuple[TimeSpent, ...]
    """The dearest first."""
