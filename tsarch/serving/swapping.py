"""What a hot swap is, whoever computes: is there another version, and what if it can't be had."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tsarch.errors import one_line
from tsarch.serving.engine import RunInfo, ServiceError
from tsarch.serving.metrics import Metrics

LOG = logging.getLogger("tsarch.serving")
_RETRY_S = 30


def marks(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells a version's folder from others, at a glance."""
    files = [path for part in ("model", "onnx") for path in sorted((folder / part).rglob("*"))]
    found = [(str(path), path.stat()) for path in files]
    return tuple((path, own.st_size, own.st_mtime_ns) for path, own in found)


def version_name(name: str | None, revision: str) -> str:
    """What clients are told of a version: its name (None: the run was never refit) and weights."""
    return f"{name or 'original'}@{revision[:12]}"


@contextmanager
def goes_on(old: RunInfo) -> Iterator[None]:
    """While another version than `old` is loaded.

    Raises:
        ServiceError: 503: it can't be loaded; the old one goes on.
    """
    try:
        yield
    except Exception as error:  # whatever damaged files make libraries raise
        what = f"{old.name} goes on with {old.version}: {one_line(error)}"
        LOG.error("swap failed: %s", what)
        raise ServiceError(503, what, _RETRY_S) from None


def tell_swap(old: RunInfo, new: RunInfo, metrics: Metrics) -> None:
    """Count a swap and log it."""
    LOG.info("%s: %s took the place of %s", new.name, new.version, old.version)
    metrics.swaps.labels(new.name).inc()
