"""How to go on with a run that has ended: only what works is advised."""

from __future__ import annotations

import shlex
from pathlib import Path

from tsarch.checkpoint.store import Store
from tsarch.redaction import is_redacted, redact_urls


def how_to_go_on(folder: Path, store: Store, address: str | None) -> str:
    """The command that goes on with the run in `folder` where its checkpoints in `store` end; where
    there are none, so.

    Args:
        address: Ray cluster that it has joined.
    """
    if not (folder / "config.yaml").is_file() or not _has_steps(store):
        again = (
            f"start it again once the cause is gone, with {folder} removed or another run.folder."
        )
        return f"It has no checkpoint to go on from: {again}"
    command = ["tsarch", "train", str(folder), "--resume"]
    if address is not None:
        command += ["--address", address]
    text = f"Go on with: {shlex.join(command)}"
    if is_redacted(redact_urls(store.url)):
        text += " --set checkpoint.folder=URL (whose credentials are in no file of the run)"
    return text


def _has_steps(store: Store) -> bool:
    try:
        return bool(store.steps())
    except Exception:  # every protocol has errors of its own; the run may have ended by this one
        return False
