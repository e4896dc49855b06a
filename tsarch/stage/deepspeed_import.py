"""DeepSpeed, imported at once; elsewhere it is where it is first used.

For its autotuner, which nothing here uses, it imports mlflow wherever that is installed. That takes
longer than all the rest of it; within this import there is no mlflow.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _without(name: str) -> Iterator[None]:
    """Within, a package can't be imported, unless it already was."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


with _without("mlflow"):
    import deepspeed  # noqa: F401
