"""Whether there is memory for models before they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil

from tsarch.errors import UserError

_WORK_BYTES = 256 << 20
"""Of what a run needs beside its weights."""


def check_memory(folders: Sequence[Path], cache_bytes: int) -> None:
    """Check that runs fit into what is free.

    Raises:
        UserError: they don't.
    """
    weights = [_weight_bytes(own) for own in folders]
    needed = sum(weights) + len(folders) * _WORK_BYTES + cache_bytes
    free = psutil.virtual_memory().available
    if needed > free:
        runs = ", ".join(
            f"{own} {size / 2**30:.1f} GiB" for own, size in zip(folders, weights, strict=True)
        )
        what = (
            f"is short: {needed / 2**30:.1f} GiB are needed (weights: {runs}; "
            f"{cache_bytes / 2**30:.1f} GiB cache; the rest for computing), {free / 2**30:.1f} are "
            "free."
        )
        raise UserError.single("memory", what, "Serve fewer runs, or give a smaller --cache-mb.")


def _weight_bytes(folder: Path) -> int:
    files = [*(folder / "model").rglob("*.safetensors")]
    if not files:  # what the hub has for ONNX
        files = [*(folder / "onnx").rglob("*.onnx*")]
    return sum(path.stat().st_size for path in files)
