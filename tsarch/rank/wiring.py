"""What differs between one process and many: engines, groups, and which stages are here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from tsarch.blueprint import Blueprint
from tsarch.checkpoint.host_copies import HostCopies
from tsarch.launchers import without_launchers
from tsarch.models.construction import WHOLE, Construction
from tsarch.parallel.groups import ProcessGroup
from tsarch.parallel.lifeline import Lifeline
from tsarch.rank.activity import Activity
from tsarch.specs import OptimizerSpec
from tsarch.stage.engine import Engine, LocalEngine
from tsarch.topology import Stage, Topology


class EngineFactory(Protocol):
    """Makes the engine of a stage."""

    def __call__(self, stage: Stage, module: nn.Module, spec: OptimizerSpec) -> Engine:
        """Wrap a module; on many ranks every rank of the stage calls it."""


@dataclass(frozen=True)
class Wiring:
    """How the stages of a process are connected with the others and run."""

    topology: Topology
    stages: tuple[tuple[Stage, int], ...]
    """(stage, replica) of each stage in this process."""
    device: torch.device
    make_engine: EngineFactory
    link_group: ProcessGroup | None = None
    tied_group: ProcessGroup | None = None
    construction: Construction = WHOLE
    """What happens to parameters while a model is built."""
    activity: Activity = field(default_factory=Activity)
    """Told of every instruction."""
    lifeline: Lifeline = field(default_factory=Lifeline)
    """Of the link and the tied group."""
    copies: HostCopies = field(default_factory=HostCopies)
    """Where cuts are kept."""
    sequence_group: ProcessGroup | None = None
    """Of the ranks that share contexts with this one; None: it has its own."""

    @property
    def is_alone(self) -> bool:
        """Whether no stage here has other ranks."""
        return all(self.topology.replicas(stage) == 1 for stage, _ in self.stages)

    @property
    def ranks(self) -> list[int]:
        """Global numbers of the stages here."""
        return [self.topology.rank(*place) for place in self.stages]


def local_wiring(blueprint: Blueprint) -> Wiring:
    """All stages in this process, on one device, with a loopback link."""
    if blueprint.runner.threads is not None:
        torch.set_num_threads(blueprint.runner.threads)
    # accelerate keeps its first settings for the whole process; a process may have several runs.
    AcceleratorState._reset_state(reset_partial_state=True)
    with without_launchers():
        accelerator = Accelerator(mixed_precision="no", cpu=blueprint.runner.device == "cpu")

    def make_engine(stage: Stage, module: nn.Module, spec: OptimizerSpec) -> Engine:
        return LocalEngine(module, spec, blueprint.precision, accelerator.device)

    graph = blueprint.topology.graph
    places = tuple((stage, 0) for stage in graph.stages)
    one_each = Topology(graph, tuple(1 for _ in places))
    return Wiring(one_each, places, accelerator.device, make_engine)
