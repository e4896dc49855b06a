"""How a rank among others comes to be: the groups that it joins, and its models and engines."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import astuple, dataclass

import torch
from torch import nn

from tsarch.blueprint import Blueprint
from tsarch.checkpoint.host_copies import HostCopies
from tsarch.parallel.groups import (
    Address,
    MeetingPoint,
    ProcessGroup,
    abort_across,
    abort_stage,
    choose_device,
    new_cross_group,
    new_sequence_group,
    set_stage_environment,
    use_interface_of,
)
from tsarch.parallel.sockets import Sockets
from tsarch.prepare import Prepared, prepare_data
from tsarch.rank.activity import Activity
from tsarch.rank.api import Meeting
from tsarch.rank.building import Parts
from tsarch.rank.rank import Rank
from tsarch.rank.wiring import Wiring
from tsarch.specs import OptimizerSpec
from tsarch.stage.deepspeed_config import stage_extra
from tsarch.stage.deepspeed_engine import (
    DeepSpeedEngine,
    leave_stage_world,
    stage_construction,
    start_stage_world,
)
from tsarch.stage.engine import Engine, LocalEngine
from tsarch.topology import Stage, Topology

_CROSS_GROUPS = ("link", "tied")
"""Groups of all ranks of both stages; each stage has one of its own besides."""


class Groups:
    """The groups that a rank belongs to. It may leave and join those across both stages, or its
    stage's too, again and again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._across: list[ProcessGroup] = []
        self._sockets_across = Sockets()
        self.stage_sockets = Sockets()
        """Of the stage's world, and of groups that engines make in it."""
        self.in_stage = False
        """Whether it belongs to its stage's world."""
        self.sequence: ProcessGroup | None = None
        """Of the stage's ranks that share contexts with this one; None: it has its own."""

    @property
    def link(self) -> ProcessGroup:
        """For states and their gradients."""
        return self._across[0]

    @property
    def tied(self) -> ProcessGroup:
        """For gradients of the table."""
        return self._across[1]

    def join(self, blueprint: Blueprint, rank: int, host: str, meeting: Meeting) -> None:
        """Join the stage's world, unless it was not left, and the groups of both stages (all ranks
        call it)."""
        topology, timeout_s = blueprint.topology, blueprint.runner.timeout_s
        stage, stage_rank = topology.place(rank)
        use_interface_of(host)
        addresses = {name: Address(*place) for name, place in meeting.addresses.items()}
        if not self.in_stage:
            set_stage_environment(addresses[stage.value], stage_rank, topology.replicas(stage))
            with self.stage_sockets.watched():
                start_stage_world(self._device, timeout_s)
                if (number := topology.num_slices(stage)) > 1:
                    self.sequence = new_sequence_group(number, timeout_s)
            self.in_stage = True
        with self._sockets_across.watched():
            for name in _CROSS_GROUPS:
                place = addresses[name]
                self._across.append(
                    new_cross_group(place, rank, topology.num_ranks, self._device, timeout_s)
                )

    def cut(self, whole_stage: bool) -> None:
        """Let whatever waits in the groups across both stages fail, and in the stage's too if it is
        to be joined anew. For another thread than the one that waits."""
        self._sockets_across.cut()
        abort_across(self._across, self._device)
        if whole_stage:
            self.stage_sockets.cut()
            abort_stage(self._device)

    def leave(self, whole_stage: bool) -> None:
        """Forget the groups. Nobody may use them any more."""
        self.cut(whole_stage)
        self._across = []
        self._sockets_across = Sockets()
        if whole_stage and self.in_stage:
            self.in_stage, self.sequence = False, None
            leave_stage_world()
            self.stage_sockets = Sockets()


def meeting_points(
    topology: Topology, rank: int, host: str, stages: Collection[str]
) -> dict[str, MeetingPoint]:
    """Where the groups meet whose first rank this is, of both stages and of those `stages` that
    join theirs; they must be kept as long as the groups."""
    stage, stage_rank = topology.place(rank)
    names = [stage.value] if stage_rank == 0 and stage.value in stages else []
    names += _CROSS_GROUPS if rank == 0 else ()
    return {name: MeetingPoint(host) for name in names}


def addresses_of(points: dict[str, MeetingPoint]) -> dict[str, tuple[str, int]]:
    """What others need to know of meeting points."""
    return {name: astuple(point.address) for name, point in points.items()}


@dataclass(frozen=True)
class Belongings:
    """What a rank has beside its groups, and keeps when others fail."""

    activity: Activity
    copies: HostCopies
    prepared: Prepared | None = None
    """Data that it has read before."""
    kept: Parts | None = None
    """Its parts, if the engines in them are still of use."""


def assemble(blueprint: Blueprint, rank: int, groups: Groups, own: Belongings) -> Rank:
    """Read the data and build models and engines, what there isn't yet of both (all ranks call it:
    the table is broadcast)."""
    topology = blueprint.topology
    stage, stage_rank = topology.place(rank)
    device = choose_device(blueprint.runner.device)
    engine, replicas = blueprint.stages[stage].engine, topology.replicas(stage)
    extra = stage_extra(engine, pin_memory=device.type == "cuda")
    precision, micro_batches = blueprint.precision, blueprint.schedule.micro_batches

    def make_engine(stage: Stage, module: nn.Module, spec: OptimizerSpec) -> Engine:
        if replicas == 1 and engine.zero_stage == 0 and not engine.deepspeed:
            # DeepSpeed would copy all gradients to sum them over one rank.
            return LocalEngine(module, spec, precision, device)
        return DeepSpeedEngine(
            module, spec, precision, engine.zero_stage, replicas, micro_batches, device, extra
        )

    wiring = Wiring(
        topology,
        ((stage, stage_rank),),
        device,
        make_engine,
        groups.link,
        groups.tied,
        stage_construction(precision, engine.zero_stage, replicas, micro_batches, extra),
        own.activity,
        copies=own.copies,
        sequence_group=groups.sequence,
    )
    prepared = own.prepared or prepare_data(blueprint)
    with groups.stage_sockets.watched():
        return Rank(blueprint, prepared, wiring, own.kept)
