"""Processes that start in half a second, as copies of one that has imported the libraries."""

from __future__ import annotations

from multiprocessing import get_context
from multiprocessing.context import ForkServerContext


def forked() -> ForkServerContext:
    """Where such processes come from. On CPUs only: a copy of a process can't use a GPU."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.suites.rank_imports"])
    return context
