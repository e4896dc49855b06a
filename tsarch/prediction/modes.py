"""Which modes a pair has."""

from __future__ import annotations

from collections.abc import Sequence

from tsarch.config import Mode
from tsarch.errors import UserError


def known_mode(mode: Mode, modes: Sequence[Mode]) -> Mode:
    """The mode, if it is one of a pair's.

    Raises:
        UserError: it isn't.
    """
    if mode not in modes:
        hint = f"It has {', '.join(modes)}."
        raise UserError.single(f"mode {mode}", "is none of this pair's.", hint)
    return mode
