"""Runs a function on a few processes with a gloo group; ends only what it started, in time."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from tests.suites.forked import forked
from tsarch.parallel.groups import Address, MeetingPoint

TIMEOUT_S = 60.0


def run_ranks(
    function: Callable[..., Any], num_ranks: int, timeout_s: float = TIMEOUT_S
) -> list[Any]:
    """`function(rank, group)` on every rank; returns the results by rank."""
    context = forked()
    meeting_point = MeetingPoint("127.0.0.1")
    results = context.Queue()
    processes = [
        context.Process(
            target=_run, args=(function, rank, num_ranks, meeting_point.address, results)
        )
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=timeout_s) for _ in processes)
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
    errors = [value for value in found.values() if isinstance(value, BaseException)]
    if errors:
        raise errors[0]
    return [pickle.loads(found[rank]) for rank in range(num_ranks)]


def _run(
    function: Callable[..., Any], rank: int, num_ranks: int, address: Address, results: Any
) -> None:
    import torch

    from tsarch.parallel.groups import new_cross_group, use_interface_of

    torch.set_num_threads(1)
    use_interface_of("127.0.0.1")
    try:
        group = new_cross_group(address, rank, num_ranks, torch.device("cpu"), TIMEOUT_S)
        value = function(rank, group)
    except BaseException as error:
        results.put((rank, RuntimeError(f"rank {rank}: {error!r}")))
        raise
    results.put((rank, pickle.dumps(value)))  # by value: a shared tensor ends with its process
    results.close()
    results.join_thread()
