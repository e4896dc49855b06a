"""How a rank among others comes to be: the groups that it joins, and its models and engines."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from torch import nn

from tsarch.blueprint import Blueprint
from tsarch.parallel.groups import (
    Address,
    MeetingPoint,
    ProcessGroup,
    choose_device,
    new_cross_group,
    set_stage_environment,
    use_interface_of,
)
from tsarch.prepare import prepare_data
from tsarch.rank.activity import Activity
from tsarch.rank.api import Meeting
from tsarch.rank.rank import Rank
from tsarch.rank.wiring import Wiring
from tsarch.specs import OptimizerSpec
from tsarch.stage.deepspeed_config import stage_extra
from tsarch.stage.deepspeed_engine import DeepSpeedEngine, stage_construction, start_stage_world
from tsarch.stage.engine import Engine, LocalEngine
from tsarch.topology import Stage, Topology

_CROSS_GROUPS = ("link", "tied")
"""Groups of all ranks of both stages; each stage has one of its own besides."""


@dataclass(frozen=True)
class Groups:
    """The groups across both stages that a rank belongs to."""

    link: ProcessGroup
    tied: ProcessGroup


def meeting_points(topology: Topology, rank: int, host: str) -> dict[str, MeetingPoint]:
    """Where the groups meet whose first rank this is; they must be kept as long as the groups."""
    stage, stage_rank = topology.place(rank)
    names = [stage.value] if stage_rank == 0 else []
    names += _CROSS_GROUPS if rank == 0 else ()
    return {name: MeetingPoint(host) for name in names}


def addresses_of(points: dict[str, MeetingPoint]) -> dict[str, tuple[str, int]]:
    """What others need to know of meeting points."""
    return {name: astuple(point.address) for name, point in points.items()}


def join_groups(blueprint: Blueprint, rank: int, host: str, meeting: Meeting) -> Groups:
    """Join the stage's world and the groups of both stages (all ranks call it)."""
    topology, timeout_s = blueprint.topology, blueprint.runner.timeout_s
    stage, stage_rank = topology.place(rank)
    device = choose_device(blueprint.runner.device)
    use_interface_of(host)
    addresses = {name: Address(*place) for name, place in meeting.addresses.items()}
    set_stage_environment(addresses[stage.value], stage_rank, topology.replicas(stage))
    start_stage_world(device, timeout_s)
    link, tied = (
        new_cross_group(addresses[name], rank, topology.num_ranks, device, timeout_s)
        for name in _CROSS_GROUPS
    )
    return Groups(link, tied)


def assemble(blueprint: Blueprint, rank: int, groups: Groups, activity: Activity) -> Rank:
    """Read the data and build models and engines (all ranks call it: the table is broadcast)."""
    topology = blueprint.topology
    stage, stage_rank = topology.place(rank)
    device = choose_device(blueprint.runner.device)
    own, replicas = blueprint.stages[stage].engine, topology.replicas(stage)
    extra = stage_extra(own, pin_memory=device.type == "cuda")
    precision, micro_batches = blueprint.precision, blueprint.schedule.micro_batches

    def make_engine(stage: Stage, module: nn.Module, spec: OptimizerSpec) -> Engine:
        if replicas == 1 and own.zero_stage == 0 and not own.deepspeed:
            # DeepSpeed would copy all gradients to sum them over one rank.
            return LocalEngine(module, spec, precision, device)
        return DeepSpeedEngine(
            module, spec, precision, own.zero_stage, replicas, micro_batches, device, extra
        )

    wiring = Wiring(
        topology,
        ((stage, stage_rank),),
        device,
        make_engine,
        groups.link,
        groups.tied,
        stage_construction(precision, own.zero_stage, replicas, micro_batches, extra),
        activity,
    )
    return Rank(blueprint, prepare_data(blueprint), wiring)
