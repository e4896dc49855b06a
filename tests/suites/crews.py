"""Crews for many configs: ranks are kept from one config to the next."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tests.suites.forked import forked
from tsarch.blueprint import Blueprint, resolve
from tsarch.cluster.ray_crew import RayCrew
from tsarch.config import Config
from tsarch.rank.members import spawn
from tsarch.rank.process import RankProcess
from tsarch.rank.process_crew import ProcessCrew
from tsarch.rank.serving import Make


class Crews:
    """One crew at a time, of plain processes or on a Ray of its own, as `topology.runner` says.
    Ranks are started anew only for another runner or pair of replica counts, or after a failure."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        """Folder of what ranks print."""
        self._crew: RayCrew | ProcessCrew | None = None

    def get(self, config: Config, make: Make = RankProcess) -> RayCrew | ProcessCrew:
        """The crew, with models newly built for `config`.

        Args:
            make: what plain processes are that have to be started now; `close` first if other ones
                may be there.
        """
        blueprint = resolve(config)
        if self._crew is None or not _fits(self._crew, blueprint):
            self.close()
            self._crew = self._start(blueprint, make)
        else:
            self._crew.build(blueprint)
        return self._crew

    def _start(self, blueprint: Blueprint, make: Make) -> RayCrew | ProcessCrew:
        if blueprint.runner.name == "ray":
            return RayCrew.start(blueprint, None, self.logs, lambda _: None)
        launch = partial(spawn, context=forked())
        return ProcessCrew.start(blueprint, self.logs, lambda _: None, launch, make=make)

    def close(self) -> None:
        """End the ranks, and their Ray if they have one; `get` starts others."""
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()


def _fits(crew: RayCrew | ProcessCrew, blueprint: Blueprint) -> bool:
    """Whether its ranks can go on with another config."""
    is_on_ray = isinstance(crew, RayCrew)
    failed = crew.calls.has_failed if isinstance(crew, RayCrew) else crew.has_failed
    same = crew.topology == blueprint.topology and is_on_ray == (blueprint.runner.name == "ray")
    return same and not failed
