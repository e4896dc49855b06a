"""How much a server takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of requests, and of all together."""

    body_bytes: int = 8 << 20
    """Of a request."""
    inputs: int = 1024
    """Of a request."""
    characters: int = 2_000_000
    """Of all texts of a request."""
    depth: int = 16
    """Of lists and objects in one another."""
    queue_tokens: int = 262_144
    """That wait for a run, or are read for it; also of a request at most."""
    request_s: float = 60.0
    """From a request to its answer."""
