"""Processes that start in half a second, as copies of one that has imported the libraries."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext

from tsarch.rank.preloaded import rank_context


def forked() -> ForkServerContext:
    """Where such processes come from. On CPUs only: a copy of a process can't use a GPU."""
    context = rank_context()
    assert isinstance(context, ForkServerContext), "this machine has a GPU"
    return context
