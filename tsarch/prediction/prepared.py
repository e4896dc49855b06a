"""Inputs on their way to the models."""

from __future__ import annotations

from dataclasses import dataclass

from tsarch.inputs.rows import Inputs
from tsarch.records import TokenizedSplit


@dataclass(frozen=True)
class Prepared:
    """Inputs as the models read them."""

    inputs: Inputs
    split: TokenizedSplit | None
    """None: there is no input that can be read."""

    @property
    def num_tokens(self) -> int:
        """Of the contexts that the teacher reads, and of what they have no room for."""
        split = self.split
        return 0 if split is None else len(split.token_ids) + split.num_cut_tokens
