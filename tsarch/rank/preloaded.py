"""Processes that find everything imported: copies of one that imports while the driver still checks
the run. On machines without GPUs alone, since a copy of a process can't use them."""

from __future__ import annotations

from glob import glob
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext, SpawnContext

_IMPORTS = "tsarch.rank.imports"
_DEVICES = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd")
"""Files that a system with GPUs has."""


def rank_context() -> ForkServerContext | SpawnContext:
    """Where the processes of ranks come from."""
    if has_gpu():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([_IMPORTS])
    return context


def start_importing() -> None:
    """Start the process that ranks will be copies of, if they will, and don't wait for it."""
    if isinstance(rank_context(), ForkServerContext):
        forkserver.ensure_running()


def has_gpu() -> bool:
    """Whether this machine has a GPU, as far as that is known without torch."""
    return any(glob(name) for name in _DEVICES)
