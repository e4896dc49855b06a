"""The crew: all ranks of both stages, as the driver sees them; and the crew of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from tsarch.checkpoint.cut import Cut, Cuts, Resume, Stall, Written
from tsarch.config import Config, Mode, TopologyConfig
from tsarch.parallel.groups import choose_device
from tsarch.prepare import Prepared
from tsarch.rank.rank import Rank, local_wiring
from tsarch.rank.rank_stats import RankStats
from tsarch.rank.supply import Supply
from tsarch.records import Predictions, Survey, Texts, TickReport, Windows
from tsarch.topology import STAGES, Stage, Topology


class Crew(Protocol):
    """Commands to all ranks; only numbers and label ids come back."""

    topology: Topology
    config: Config
    """With the topology that the crew has: after a failure there may be fewer replicas."""

    def train(
        self, start: int, stop: int, resume: Resume | None = None, cuts: Cuts | None = None
    ) -> Iterator[list[TickReport]]:
        """Train on the steps `start` … `stop` − 1, or what is left of them on `resume`; yields
        reports as they come in, and takes checkpoints where `cuts` says."""

    def take_checkpoint(self, cut: Cut) -> list[Stall]:
        """Take a checkpoint now, between two calls of `train`."""

    def checkpoint_written(self, wait: bool) -> list[Written] | None:
        """What all ranks have written of the checkpoint under way; None: not all of it yet."""

    def survey(self, split: str) -> list[Survey]:
        """The teachers' predictions of a split, before windows are chosen."""

    def evaluate(
        self, split: str, joint_weights: list[float], windows: Windows | None = None
    ) -> list[Predictions]:
        """Predict a split on all ranks; `windows`: in place of the split's own."""

    def generate(self, split: str, mode: Mode, joint_weight: float) -> Texts:
        """Generate the texts of a split on all ranks."""

    def check_replicas(self, step: int) -> None:
        """Raise `ReplicaDriftError` if replicas of the table differ."""

    def save(self, folder: Path) -> None:
        """Write the weights into an existing folder."""

    def load(self, folder: Path) -> None:
        """Put weights in for inference."""

    def stats(self) -> dict[Stage, list[RankStats]]:
        """Counts and peaks of the ranks of each stage."""

    def supply(self, topology: TopologyConfig) -> Supply:
        """Devices and cores that the run may take, those that it holds already among them."""

    def set_threads(self, threads: int) -> None:
        """Compute with so many CPU threads on every rank from now on."""

    def close(self) -> None:
        """End all that the crew started."""


class LocalCrew:
    """Both stages in this process."""

    def __init__(self, config: Config, prepared: Prepared) -> None:
        wiring = local_wiring(config)
        self.config = config
        self.topology = wiring.topology
        self._rank = Rank(config, prepared, wiring)

    def train(
        self, start: int, stop: int, resume: Resume | None = None, cuts: Cuts | None = None
    ) -> Iterator[list[TickReport]]:
        """One tick after the other."""
        num_ticks = self._rank.begin(start, stop, resume)
        first = start if resume is None else resume.tick
        for tick in range(first, first + num_ticks):
            cut = None if cuts is None else cuts.due(tick)
            if cuts is not None and cut is not None:
                cuts.taken(tick, self.take_checkpoint(cut))
            if cuts is not None and cuts.stopping:
                return
            yield self._rank.advance(1)

    def take_checkpoint(self, cut: Cut) -> list[Stall]:
        """Copy, and write in the background."""
        return [self._rank.take_checkpoint(cut)]

    def checkpoint_written(self, wait: bool) -> list[Written] | None:
        """What the process has written."""
        written = self._rank.checkpoint_written(wait)
        return None if written is None else [written]

    def survey(self, split: str) -> list[Survey]:
        """The teacher's predictions."""
        survey = self._rank.survey(split)
        assert survey is not None
        return [survey]

    def evaluate(
        self, split: str, joint_weights: list[float], windows: Windows | None = None
    ) -> list[Predictions]:
        """Predict a split."""
        predictions = self._rank.evaluate(split, joint_weights, windows)
        assert predictions is not None
        return [predictions]

    def generate(self, split: str, mode: Mode, joint_weight: float) -> Texts:
        """Generate the texts of a split."""
        return self._rank.generate(split, mode, joint_weight)

    def check_replicas(self, step: int) -> None:
        """There is one replica only."""

    def save(self, folder: Path) -> None:
        """Write the weights."""
        self._rank.save(folder)

    def load(self, folder: Path) -> None:
        """Read weights."""
        self._rank.load(folder)

    def stats(self) -> dict[Stage, list[RankStats]]:
        """The process's numbers, for both stages."""
        own = self._rank.stats()
        return {stage: [own] for stage in STAGES}

    def supply(self, topology: TopologyConfig) -> Supply:
        """This process's one device, and its threads."""
        device = choose_device(topology.device)
        return Supply("cuda" if device.type == "cuda" else "cpu", 1, torch.get_num_threads())

    def set_threads(self, threads: int) -> None:
        """Compute with so many CPU threads from now on."""
        torch.set_num_threads(threads)

    def close(self) -> None:
        """Nothing was started."""
