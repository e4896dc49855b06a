"""Crews for many configs: ranks on Ray are kept from one config to the next."""

from __future__ import annotations

from pathlib import Path

from tsarch.blueprint import resolve
from tsarch.cluster.ray_crew import RayCrew
from tsarch.config import Config


class Crews:
    """One crew on a Ray of its own at a time. Ranks are started anew only for another pair of
    replica counts, or after a failure."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._crew: RayCrew | None = None

    def get(self, config: Config) -> RayCrew:
        """The crew, with models newly built for `config`."""
        crew, blueprint = self._crew, resolve(config)
        if crew is not None and crew.topology == blueprint.topology and not crew.calls.has_failed:
            crew.build(blueprint)
            return crew
        self.close()
        self._crew = RayCrew.start(blueprint, None, self._logs, lambda _: None)
        return self._crew

    def close(self) -> None:
        """End the ranks and their Ray; `get` starts others."""
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()
