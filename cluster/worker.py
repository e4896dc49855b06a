"""The actor of one rank on Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import ray

from tsarch.blueprint import Blueprint
from tsarch.rank.process import Answering, RankProcess

if TYPE_CHECKING:
    from tsarch.cluster.agreement import Facts
    from tsarch.cluster.probe import Request

WATCH = "watch"
"""The concurrency group of the calls that are answered while a rank works."""

M = TypeVar("M", bound=Callable[..., Any])


def _meanwhile(method: M) -> M:
    return cast(M, ray.method(concurrency_group=WATCH)(method))


class Actor(Answering):
    """Lets Ray call by name, and meanwhile in a thread of its own."""

    @_meanwhile
    def do_meanwhile(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """`do` of what is asked `MEANWHILE`."""
        return self.do(name, arguments)


class Worker(Actor, RankProcess):
    """One rank: one device, one stage."""

    def __init__(self, blueprint: Blueprint, rank: int, threads: int, log_file: str) -> None:
        host = str(ray.util.get_node_ip_address())
        super().__init__(blueprint, rank, threads, Path(log_file), host)

    def probe(self, request: Request) -> Facts:
        """See `ActorApi`."""
        from tsarch.cluster.probe import gather_facts

        return gather_facts(request)

    def wall_clock(self) -> float:
        """See `ActorApi`."""
        return time.time()
