"""Exported folders on the Hugging Face hub, by name."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tsarch.data.hub import WAYS_ON, unreachable
from tsarch.errors import UserError, one_line

_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_PARTS = {
    "torch": ["config.yaml", "model/*"],
    "onnx": ["config.yaml", "model/task.json", "model/tokenizer/*", "onnx/*"],
}
"""Backend → files that it reads."""


def is_hub_name(run: str) -> bool:
    """Whether a run is named as on the hub, and is no folder here."""
    if Path(run).exists() or run.split("/")[0] in ("runs", "."):
        return False
    return _NAME.fullmatch(run) is not None


def run_folder(run: str | os.PathLike[str], backend: str) -> Path:
    """A run's folder; of a name on the hub (`org/name`) that is no folder here, a copy of what is
    needed.

    Raises:
        UserError: it can't be copied.
    """
    folder = Path(run)
    if not isinstance(run, str) or not is_hub_name(run):
        return folder
    from huggingface_hub import snapshot_download

    reason = unreachable()
    try:
        patterns = _PARTS.get(backend)
        return Path(snapshot_download(run, allow_patterns=patterns))
    except Exception as error:  # of the network, or of the hub
        what = f"is no folder, and can't be copied from the hub: {reason or one_line(error)}."
        raise UserError.single(run, what, WAYS_ON if reason else "") from None
