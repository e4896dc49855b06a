"""A rank: the stages that live in one process, built from the blueprint, and what a driver asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tsarch.blueprint import Blueprint
from tsarch.checkpoint.cut import Cut, Resume, Stall, Written
from tsarch.clock import now_s
from tsarch.config import Mode
from tsarch.model_folder import load_table, load_weights, save_table, save_weights, writing
from tsarch.prepare import Prepared
from tsarch.profiled import Profile
from tsarch.rank.building import Parts, build_parts
from tsarch.rank.evaluation import Evaluation
from tsarch.rank.generate import Generator, chosen_contexts
from tsarch.rank.generation_spec import GenerationSpec
from tsarch.rank.rank_stats import RankStats
from tsarch.rank.status import peak_memory
from tsarch.rank.tick_reports import TickReports
from tsarch.rank.training import Training
from tsarch.rank.wiring import Wiring
from tsarch.records import Predictions, Survey, Windows
from tsarch.written import Generated


class Rank:
    """The stages of one process with their link and replica of the tied embedding."""

    def __init__(
        self,
        blueprint: Blueprint,
        prepared: Prepared,
        wiring: Wiring,
        kept: Parts | None = None,
    ) -> None:
        """`kept`: see `build_parts`."""
        self._blueprint = blueprint
        self.prepared = prepared
        self._wiring = wiring
        self.parts = build_parts(blueprint, prepared, wiring, kept)
        self.training = Training(blueprint, prepared, wiring, self.parts)
        self._lifeline = wiring.lifeline
        executor = self.training.executor
        self._evaluation = Evaluation(blueprint, prepared, wiring.topology, self.parts, executor)

    @property
    def lost(self) -> Exception | None:
        """What told that other ranks are gone, if this one could go on to the end of a tick."""
        return self._lifeline.error

    def begin(self, start: int, stop: int, resume: Resume | None) -> int:
        """See `Training.begin` (all ranks call it together on `resume`)."""
        return self.training.begin(start, stop, resume)

    def advance(self, num_ticks: int) -> TickReports:
        """See `Training.advance` (all ranks call it)."""
        return self.training.advance(num_ticks)

    def profile(self, folder: Path, num_ticks: int) -> None:
        """See `Training.profile`."""
        self.training.profile(folder, num_ticks)

    def profiled(self) -> Profile | None:
        """See `Training.profiled`."""
        return self.training.profiled()

    def take_checkpoint(self, cut: Cut) -> Stall:
        """See `Training.take_checkpoint` (all ranks call it)."""
        return self.training.take_checkpoint(cut)

    def checkpoint_written(self) -> Written:
        """See `Training.checkpoint_written`."""
        return self.training.checkpoint_written()

    def checkpoint_so_far(self) -> Written | None:
        """See `Training.checkpoint_so_far`."""
        return self.training.checkpoint_so_far()

    def survey(self, split: str, windows: Windows | None = None) -> Survey | None:
        """See `Evaluation.survey` (all ranks call it)."""
        return self._evaluation.survey(split, windows)

    def evaluate(
        self,
        split: str,
        joint_weights: list[float],
        windows: Windows | None,
        undecided: bool = False,
    ) -> Predictions | None:
        """See `Evaluation.evaluate` (all ranks call it)."""
        return self._evaluation.evaluate(split, joint_weights, windows, undecided)

    def generate(
        self, split: str, modes: Sequence[Mode], joint_weight: float
    ) -> dict[Mode, Generated]:
        """Generate the targets of a split (at most `decoding.max_texts`) as each mode predicts
        them; all ranks call it, those with a student give their texts."""
        parts, end_token = self.parts, self.prepared.end_token
        assert end_token is not None
        parts.train(False)
        generator = Generator(
            parts.stages,
            parts.link,
            parts.tied,
            self._wiring.tied_group,
            self._wiring.topology,
            GenerationSpec.of(self._blueprint, end_token, parts.predictions),
            modes,
            joint_weight,
        )
        own = self.prepared.splits[split]
        return generator.run(own, chosen_contexts(own, self._blueprint.decoding.max_texts))

    def check_replicas(self, step: int) -> None:
        """Every replica of the tied embedding must be bitwise equal (all ranks call it)."""
        self.parts.tied.check_replicas(step)

    def save(self, folder: Path) -> None:
        """Write the models as safetensors (all ranks call it; the first of a stage writes)."""
        for stage, engine in self.parts.engines.items():
            state = engine.state_dict()
            if state is not None:
                with writing(folder):
                    save_weights(folder, stage, state)
        if (self._wiring.topology.stages[0], 0) in self._wiring.stages:
            with writing(folder):
                save_table(folder, self.parts.tied.table.values())

    def load(self, folder: Path) -> None:
        """Put saved models in for inference (all ranks call it)."""
        for stage, engine in self.parts.engines.items():
            engine.load_state_dict(load_weights(folder, stage))
        self.parts.tied.table.load(load_table(folder))

    def stats(self) -> RankStats:
        """Counts and peaks (all ranks call it)."""
        device = self._wiring.device
        if device.type == "cuda":
            peak = int(torch.cuda.max_memory_allocated(device))
        else:
            peak = peak_memory()
        return RankStats(dict(self.parts.num_parameters), peak, self.parts.tied.max_abs_diff())

    def clock_s(self) -> float:
        """The time on this host, in seconds since 1970."""
        return now_s()

    def set_threads(self, threads: int) -> None:
        """Compute with so many CPU threads from now on."""
        torch.set_num_threads(threads)

    def perturb_table(self, rank: int, amount: float) -> None:
        """Fault injection for tests: make the replica of one rank differ."""
        if rank == self._wiring.ranks[0]:
            self.parts.tied.table.storage[0, 0] += amount
