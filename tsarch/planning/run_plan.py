"""What a run needs on given hardware: memory of every rank, traffic, seconds of a step, cost.

Pure: from the costs of a micro-batch (`stage_profile.py`) and how a run is shared out.

Volumes of collectives: Rajbhandari et al. 2020 (https://arxiv.org/abs/1910.02054), section 7. A
ring over N ranks sends (N − 1) / N of the bytes to gather or to scatter them, and twice that to sum
them on all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tsarch.blueprint import Blueprint
from tsarch.errors import UserError
from tsarch.models.measures import head_shape, heads_of
from tsarch.planning.balance import Prediction, StageTimes, Way, predict
from tsarch.planning.capacity import RankNeed, need_of
from tsarch.planning.hardware import Hardware
from tsarch.planning.stage_profile import StageProfile, Workload
from tsarch.topology import STAGES, Stage

_BUCKET_VALUES = 500_000_000
"""DeepSpeed's `reduce_bucket_size`, unless the config says otherwise."""
_CONTEXT_BYTES = 1_000_000_000
"""What CUDA and its libraries take of a GPU, about."""


@dataclass(frozen=True)
class RankPlan:
    """A rank of a stage."""

    stage: Stage
    need: RankNeed
    """Weights, gradients, optimizer state, table, copy for checkpoints."""
    activations: int
    """Of all micro-batches in flight."""
    activations_otherwise: int | None
    """With activation checkpointing if it has none, without if it has; None: not known."""
    buffers: int
    """Of collectives, and under ZeRO 3 of a layer's whole weights."""
    flops: float
    """Of a step."""
    link_bytes: float
    """That it sends in a step."""
    collective_bytes: float
    """That it sends in a step to the others of its stage."""
    tied_bytes: float
    """That it sends in an exchange of the table."""
    times: StageTimes
    collective_s: float
    """Of its stage's collectives; under ZeRO 3 behind the computing, in so far as that is longer.
    """

    @property
    def on_device(self) -> int:
        """Bytes of its device, if that is a GPU."""
        return self.need.on_gpu + self.activations + self.buffers


@dataclass(frozen=True)
class RunPlan:
    """The whole run."""

    hardware: Hardware
    ranks: Mapping[Stage, RankPlan]
    num_steps: int
    step_s: float
    idle_share: float
    """Share of a step in which ranks wait: the bubble."""
    missing_bytes: int
    """What the fullest device lacks; 0: the run fits."""

    @property
    def num_ranks(self) -> int:
        """Of all stages."""
        return sum(own.need.replicas for own in self.ranks.values())

    @property
    def fits(self) -> bool:
        """Whether every rank has room."""
        return self.missing_bytes == 0

    @property
    def total_s(self) -> float:
        """Of all steps; evaluations and checkpoints left out."""
        return self.num_steps * self.step_s

    @property
    def cost(self) -> float | None:
        """Of all devices for that long; None: no price is known."""
        price = self.hardware.price_an_hour
        return None if price is None else self.total_s / 3600 * self.num_ranks * price


def plan_run(
    blueprint: Blueprint,
    profiles: Mapping[Stage, StageProfile],
    work: Workload,
    hardware: Hardware,
) -> RunPlan:
    """The plan of a run whose stages' costs are known, shared out as `blueprint` has it: it may be
    shared out otherwise than the run that they are of.

    Raises:
        UserError: the hardware is so that its numbers mean nothing.
    """
    ranks = {stage: plan_rank(blueprint, own, work, hardware) for stage, own in profiles.items()}
    found = _prediction(blueprint, ranks)
    plan = RunPlan(
        hardware, ranks, work.num_steps, found[0], found[1], _missing(blueprint, ranks, hardware)
    )
    if not all(map(math.isfinite, (plan.step_s, plan.idle_share, plan.total_s, plan.cost or 0.0))):
        what = "gives seconds or a cost that are no finite numbers."
        raise UserError.single(f"hardware {hardware.name}", what, "Look over its numbers.")
    return plan


def plan_rank(
    blueprint: Blueprint, own: StageProfile, work: Workload, hardware: Hardware
) -> RankPlan:
    """The plan of a stage's ranks."""
    stage, micro_batches = own.stage, blueprint.schedule.micro_batches
    settings, replicas = blueprint.stages[stage], blueprint.topology.replicas(stage)
    groups, slices = blueprint.topology.num_groups(stage), blueprint.topology.num_slices(stage)
    batch_tokens = blueprint.batches.step_tokens
    tokens = max(batch_tokens / (groups * micro_batches), own.least_tokens) / slices
    scale = tokens / own.share_tokens
    need = need_of(blueprint, stage, own.counts)
    checkpoints = settings.activation_checkpointing
    in_flight = _in_flight(blueprint, stage)
    kept = own.activations.get(checkpoints)
    assert kept is not None, "profiled with it, if plans are made with it"
    other = own.activations.get(not checkpoints)
    computed_s = sum(_computed_s(own, scale, checkpoints)) * micro_batches
    collective = _collective_bytes(blueprint, own)
    rate = hardware.between(replicas)
    collective_s = collective / rate if replicas > 1 else 0.0
    sharded = 0 if blueprint.runner.is_one_process else settings.engine.zero_stage
    both_s = max(computed_s, collective_s) if sharded == 3 else computed_s + collective_s
    traded = _traded_bytes(blueprint, own, own.tokens * scale * own.usual * micro_batches)
    both_s += traded / hardware.between(slices)
    tied = _tied_bytes(blueprint, work)
    exchanges = max(_exchanges(blueprint), 1)
    tied_s = own.costs["tied"].seconds(1.0) / exchanges if "tied" in own.costs else 0.0
    step_s = own.costs["step"].seconds(1.0) if "step" in own.costs else 0.0
    link = own.link_bytes * scale * own.usual * micro_batches
    link_s = link / hardware.between(blueprint.topology.num_ranks)
    flops = _flops(own, checkpoints) * scale * own.usual * micro_batches
    return RankPlan(
        stage,
        need,
        int(kept * scale * in_flight),
        None if other is None else int(other * scale * in_flight),
        _buffers(blueprint, own, hardware),
        flops,
        link,
        collective + traded,
        tied,
        StageTimes(
            both_s + link_s,
            step_s / replicas if sharded else step_s,
            tied_s + tied / hardware.between(blueprint.topology.num_ranks),
        ),
        collective_s,
    )


def _computed_s(own: StageProfile, scale: float, checkpoints: bool) -> tuple[float, float]:
    """Seconds of a mean micro-batch's forward and backward pass. Costs of a run with checkpointing
    have the second forward pass among their own; it comes or goes with the setting."""
    scale *= own.usual
    forward_s = own.costs["forward"].seconds(scale)
    backward_s = own.costs["backward"].seconds(scale) if "backward" in own.costs else 0.0
    return forward_s, backward_s + _extra_passes(own, checkpoints) * forward_s


def _flops(own: StageProfile, checkpoints: bool) -> float:
    forward = own.costs["forward"].flops
    backward = own.costs["backward"].flops if "backward" in own.costs else 0.0
    return forward + backward + _extra_passes(own, checkpoints) * forward


def _extra_passes(own: StageProfile, checkpoints: bool) -> int:
    return int(checkpoints) - int(own.profiled_with_checkpointing)


def _in_flight(blueprint: Blueprint, stage: Stage) -> int:
    """Micro-batches that are forwarded and not yet back-propagated."""
    schedule = blueprint.schedule
    if schedule.name != "joint" or not blueprint.topology.graph.targets(stage):
        return 1
    return min(schedule.in_flight, schedule.micro_batches)


def _exchanges(blueprint: Blueprint) -> int:
    """Exchanges of the table in the ticks of one step alone (see `dry_stage.py`)."""
    return 1 if blueprint.schedule.name == "joint" else len(blueprint.stages)


def _collective_bytes(blueprint: Blueprint, own: StageProfile) -> float:
    """What a rank sends to the others of its stage in a step."""
    replicas = blueprint.topology.replicas(own.stage)
    settings = blueprint.stages[own.stage]
    value = 2 if blueprint.precision == "bf16" else 4
    weights, gradients = value * own.counts.parameters, value * own.counts.trainable
    around, micro_batches = (replicas - 1) / replicas, blueprint.schedule.micro_batches
    match settings.engine.zero_stage:
        case 0:
            return around * 2 * gradients
        case 1:
            return around * (gradients + gradients)
        case 2:
            return around * (micro_batches * gradients + gradients)
    return around * micro_batches * (2 * weights + gradients)


def _traded_bytes(blueprint: Blueprint, own: StageProfile, tokens: float) -> float:
    """What a rank sends in a step to those that it shares contexts with, of its slices' `tokens`:
    in each layer queries, keys, values and what attention makes of them, and gradients of all."""
    number, settings = blueprint.topology.num_slices(own.stage), blueprint.stages[own.stage]
    if number == 1:
        return 0.0
    hf = settings.architecture.built
    heads, kept = heads_of(hf)
    value = 2 if blueprint.precision == "bf16" else 4
    passes = 2 + int(settings.activation_checkpointing)
    of_layer = passes * value * (2 * heads + 2 * kept) * head_shape(hf)[1]
    return (number - 1) / number * int(hf.num_hidden_layers) * of_layer * tokens


def _tied_bytes(blueprint: Blueprint, work: Workload) -> float:
    """What a rank sends in an exchange of the table: gradients in fp32."""
    ranks = blueprint.topology.num_ranks
    if blueprint.table.frozen or ranks < 2:
        return 0.0
    return 2 * (ranks - 1) / ranks * 4.0 * work.touched_rows * blueprint.table.shape[1]


def _buffers(blueprint: Blueprint, own: StageProfile, hardware: Hardware) -> int:
    settings, replicas = blueprint.stages[own.stage], blueprint.topology.replicas(own.stage)
    if hardware.is_cpu or blueprint.runner.is_one_process:
        return 0
    value = 2 if blueprint.precision == "bf16" else 4
    given = settings.engine.deepspeed.get("zero_optimization", {})
    bucket = int(given.get("reduce_bucket_size", _BUCKET_VALUES))
    sharded = settings.engine.zero_stage
    total = _CONTEXT_BYTES
    if sharded > 0 and replicas > 1:
        total += value * min(bucket, own.counts.trainable)
    if sharded == 3 and replicas > 1:
        total += 2 * value * own.layer_parameters  # one in use, the next on its way
    return total


def _prediction(blueprint: Blueprint, ranks: Mapping[Stage, RankPlan]) -> tuple[float, float]:
    """(seconds from step to step, share in which ranks wait)."""
    if len(ranks) < len(STAGES):
        (only,) = ranks.values()
        return only.times.total_s, 0.0
    way: Way = "one_process" if blueprint.runner.is_one_process else blueprint.schedule.name
    counts = {stage: own.need.replicas for stage, own in ranks.items()}
    options = {stage: [own.times] * own.need.replicas for stage, own in ranks.items()}
    found: Prediction = predict(way, blueprint.schedule.micro_batches, options, counts, "replicas")
    return found.step_s, found.idle_share


def _missing(blueprint: Blueprint, ranks: Mapping[Stage, RankPlan], hardware: Hardware) -> int:
    """Bytes that the fullest device lacks."""
    if not hardware.is_cpu:
        most = max(own.on_device for own in ranks.values())
        if blueprint.runner.is_one_process:
            most = sum(own.on_device for own in ranks.values())
        return max(most - hardware.memory_bytes, 0)
    total = sum(
        own.need.replicas * (own.need.total + own.need.copy + own.activations)
        for own in ranks.values()
    )
    return max(total - hardware.memory_bytes, 0)
