"""Random numbers as pure functions of (seed, purpose, counters), the same on every rank."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A NumPy generator of its own for `purpose` and `counters` (epoch, step, …)."""
    entropy = [seed, zlib.crc32(purpose.encode()), *counters]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def torch_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed for `torch.manual_seed`."""
    return int(generator(seed, purpose, *counters).integers(2**63 - 1))
