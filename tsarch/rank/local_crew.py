"""The crew of one process: both stages here, on one device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from tsarch.blueprint import Blueprint
from tsarch.parallel.groups import choose_device
from tsarch.prepare import Prepared
from tsarch.rank.api import RankApi, name_of
from tsarch.rank.crew import Crew, Pending
from tsarch.rank.pacer import Pace
from tsarch.rank.rank import Rank
from tsarch.rank.supply import Supply
from tsarch.rank.wiring import local_wiring
from tsarch.specs import RunnerSpec

P = ParamSpec("P")
A = TypeVar("A")


class LocalCrew(Crew):
    """Both stages in this process. What is asked is done when the answer is collected."""

    def __init__(self, blueprint: Blueprint, prepared: Prepared) -> None:
        super().__init__(blueprint, Pace(num_queued=1, max_ticks=1, target_s=0.0))
        self._rank: RankApi = Rank(blueprint, prepared, local_wiring(blueprint))

    def submit(
        self,
        method: Callable[Concatenate[RankApi, P], A],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> Pending[A]:
        """Note what to do."""
        return Pending([partial(getattr(self._rank, name_of(method)), *arguments, **keywords)])

    def collect(self, pending: Pending[A]) -> list[A]:
        """Do it."""
        return [do() for do in pending.handles]

    def is_done(self, pending: Pending[Any]) -> bool:
        """It takes no waiting."""
        return True

    def forget(self, pending: Pending[Any]) -> None:
        """Don't do it."""

    def supply(self, runner: RunnerSpec) -> Supply:
        """This process's one device, and its threads."""
        device = choose_device(runner.device)
        return Supply("cuda" if device.type == "cuda" else "cpu", 1, torch.get_num_threads())

    def close(self) -> None:
        """Nothing was started."""
