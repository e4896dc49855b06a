"""States in fewer dimensions: principal components (Pearson 1901), so that of all projections to as
many dimensions this one loses least of the states that it was found from."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tsarch.records import Array, FloatArray

_PARTS = {"mean": "projection_mean", "basis": "projection_basis"}


@dataclass(frozen=True)
class Projection:
    """To the components and back."""

    mean: FloatArray
    """(width,) of the states."""
    basis: FloatArray
    """(dimensions, width) orthonormal rows, that of the largest variance first."""

    @classmethod
    def fitted(cls, states: FloatArray, dimensions: int) -> Projection:
        """The projection of (tokens, width) states to their first components.

        Raises:
            ValueError: there are no more tokens than `dimensions`, or these are no fewer than the
                states have.
        """
        num_tokens, width = states.shape
        if not dimensions < min(num_tokens, width):
            raise ValueError(f"{dimensions} dimensions of {num_tokens} states of {width}")
        mean = states.mean(0, dtype=np.float64)
        centred = states.astype(np.float64) - mean
        _, vectors = np.linalg.eigh(centred.T @ centred)
        basis = vectors.T[::-1][:dimensions]
        return cls(mean.astype(np.float32), np.ascontiguousarray(basis, dtype=np.float32))

    @property
    def dimensions(self) -> int:
        """That are kept."""
        return len(self.basis)

    @property
    def check(self) -> int:
        """CRC-32 of all numbers."""
        return zlib.crc32(self.basis.data, zlib.crc32(self.mean.data))

    def down(self, hidden: FloatArray) -> FloatArray:
        """(tokens, width) → (tokens, dimensions)."""
        components = (hidden - self.mean) @ self.basis.T
        return components.astype(np.float32, copy=False)

    def up(self, components: FloatArray) -> FloatArray:
        """(tokens, dimensions) → the (tokens, width) states nearest to those they are of."""
        hidden = components @ self.basis + self.mean
        return hidden.astype(np.float32, copy=False)

    def parts(self) -> dict[str, Array]:
        """Arrays by their names in a file."""
        return {name: getattr(self, part) for part, name in _PARTS.items()}

    @classmethod
    def of_parts(cls, part: Callable[[str], FloatArray]) -> Projection:
        """Of what `parts` gave, which is asked for by name."""
        return cls(**{own: part(name) for own, name in _PARTS.items()})
