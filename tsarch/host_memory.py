"""A process's memory on its host."""

from __future__ import annotations

import atexit
import ctypes
import gc
import sys
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's mallopt(3)."""
_NEVER = -1
_LARGE_BYTES = 1 << 30
_GROWTH_BYTES = 64 << 20
_USUAL = gc.get_threshold()
"""New objects, and rounds, after which Python's collector looks for cycles."""
_SELDOM = 100_000, 10, 10


def keep_freed_memory() -> None:
    """Reuse what large tensors leave, in place of giving it back to the system.

    glibc asks the system for every large block, whose pages come one by one and zeroed when they
    are first written: for activations of some megabytes, anew in each layer, that takes longer than
    what is computed in them. Blocks of a gigabyte and more are still given back. Does nothing where
    the C library isn't glibc.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return
    for parameter, value in (
        (_MMAP_THRESHOLD, _LARGE_BYTES),
        (_TRIM_THRESHOLD, _NEVER),
        (_TOP_PAD, _GROWTH_BYTES),
    ):
        mallopt(parameter, value)


def collect_seldom() -> None:
    """Until a model is built, look for unreachable cycles less often than Python does by itself,
    and not at the end.

    Importing torch and transformers makes hundreds of thousands of objects that stay, and with each
    seven hundred new ones Python may go through all that there are: a fifth of the seconds until a
    command computes, and a second after it is done. What isn't in a cycle goes at once as ever.
    """
    gc.set_threshold(*_SELDOM)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def collect_as_usual() -> None:
    """After `collect_seldom`: what is computed may leave cycles that hold much memory."""
    if gc.get_threshold() == _SELDOM:
        gc.set_threshold(*_USUAL)


def give_back_freed_memory() -> None:
    """Let the system have what is kept: between two kinds of work, whose blocks are of other sizes,
    it would be held beside what comes next. Takes some milliseconds a gigabyte."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    """A function of the C library; None: it isn't glibc."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
