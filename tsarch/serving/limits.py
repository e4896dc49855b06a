"""How much a server takes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tsarch.errors import Mistake, UserError

Count = Annotated[int, Field(ge=1, le=1 << 40)]
Amount = Annotated[float, Field(gt=0, le=1 << 40, allow_inf_nan=False)]


class Limits(BaseModel):
    """Of requests, and of all together."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    body_mb: Amount = 8.0
    """MiB of a request's body."""
    inputs: Count = 1024
    """Of a request."""
    characters: Count = 2_000_000
    """Of all texts of a request."""
    depth: Count = 16
    """Of lists and objects in one another."""
    queue_tokens: Count = 262_144
    """That wait for a run, or are read for it; also of a request at most."""
    request_s: Amount = 60.0
    """From a request to its answer."""
    wait_ms: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 2.0
    """That a batch waits for other requests, where the one before had several."""
    cache_mb: Annotated[int, Field(ge=0, le=1 << 30)] = 256
    """MiB of the teacher's states of documents that are kept for all runs; 0: none."""

    @property
    def body_bytes(self) -> int:
        """Of a request's body."""
        return int(self.body_mb * 2**20)


def parse_limits(texts: Sequence[str]) -> Limits:
    """Limits, those given as `NAME=VALUE` in place of the usual.

    Raises:
        UserError: there is no such limit, or it can't be so; names all.
    """
    given, mistakes = {}, []
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or name not in Limits.model_fields:
            near = difflib.get_close_matches(name, Limits.model_fields, 1)
            hint = f"Did you mean {near[0]}? " if near else ""
            hint += f"There are {', '.join(Limits.model_fields)}."
            mistakes.append(Mistake(f"--limit {text}", "is no limit: give NAME=VALUE.", hint))
        given[name] = value
    if mistakes:
        raise UserError(mistakes)
    try:
        return Limits.model_validate(given)
    except ValidationError as error:
        raise UserError(
            Mistake(f"--limit {own['loc'][0]}={own['input']}", f"{own['msg']}.")
            for own in error.errors()
        ) from None
