"""What a micro-batch costs a rank of a stage: memory, arithmetic and traffic, on given hardware."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tsarch.blueprint import Blueprint, StageBlueprint
from tsarch.data.loader import BatchPlan
from tsarch.feeds import batch_plan, num_training_steps, training_feed
from tsarch.models.measures import head_shape
from tsarch.planning.capacity import Counts, count
from tsarch.planning.dry_ops import Op
from tsarch.planning.dry_stage import DryStep, dry_step
from tsarch.planning.hardware import Hardware
from tsarch.planning.op_timing import Clock, Timing, measure
from tsarch.prepare import Prepared
from tsarch.records import TokenizedSplit
from tsarch.stage.build import is_unpadded
from tsarch.tasks.registry import make_task
from tsarch.topology import Stage, Topology

_SAMPLED_STEPS = 4
_SCORES = 9
"""Attention by products keeps the scores of a head for each pair of tokens; of a token are kept in
a layer about nine times as many values as a head is wide, for each head."""


@dataclass(frozen=True)
class Cost:
    """Of a part of a micro-batch's work."""

    flops: float = 0.0
    moved_bytes: float = 0.0
    """Of the device's memory."""
    linear_s: float = 0.0
    """Seconds that grow with the micro-batch."""
    fixed_s: float = 0.0
    """Seconds that don't: of starting operations."""

    def seconds(self, scale: float) -> float:
        """Of a micro-batch `scale` times as large."""
        return self.linear_s * scale + self.fixed_s


@dataclass(frozen=True)
class StageProfile:
    """A stage's costs for the micro-batch of a rank that holds most."""

    stage: Stage
    step: int
    """Of the run, whose micro-batch it is; of a run shared out as one rank has it."""
    counts: Counts
    tokens: int
    """Tokens of that micro-batch: of contexts, with their padding where it is computed, or of
    windows."""
    usual: float
    """Tokens of the mean one over those of that one."""
    share_tokens: int
    """Padded tokens of contexts that the batch gives a rank (ranks that share contexts together)
    and micro-batch."""
    least_tokens: int
    """Of what can't be shared out further: a context."""
    costs: Mapping[str, Cost]
    """`forward`, `backward`, `step`, `tied`, `link`."""
    activations: Mapping[bool, int]
    """With activation checkpointing, and without → bytes; what was not looked at is absent."""
    profiled_with_checkpointing: bool
    """Whether the costs are those of a run with it."""
    peak: int
    """Bytes of activations and gradients at their most."""
    link_bytes: float
    """That the rank sends."""
    layer_parameters: int
    """Of its largest layer: what ZeRO 3 has whole at a time."""


@dataclass(frozen=True)
class Workload:
    """What a run does in all."""

    num_steps: int
    batch_tokens: float
    """Padded tokens of a step's contexts, on average."""
    touched_rows: int
    """Rows of the table whose gradients travel in an exchange."""


def workload(blueprint: Blueprint, prepared: Prepared) -> Workload:
    """From the first batches, up to `data.shuffled_contexts`."""
    train = prepared.training
    plan = batch_plan(blueprint, train)
    batches, lengths = plan.block(0, 0), train.context_lengths
    padded = [len(own) * int(lengths[own].max()) for own in batches]
    vocabulary = blueprint.table.shape[0]
    task = make_task(blueprint.task.name, prepared.labels, blueprint.task)
    rows = vocabulary
    if not task.objective.uses_table and blueprint.table.exchange != "dense":
        places = np.linspace(0, len(batches) - 1, _SAMPLED_STEPS).round().astype(int)
        touched = [_distinct(train, batches[place]) for place in sorted(set(places.tolist()))]
        rows = min(vocabulary, int(np.mean(touched)))
    return Workload(num_training_steps(blueprint, plan), float(np.mean(padded)), rows)


def _distinct(train: TokenizedSplit, contexts: np.ndarray) -> int:
    offsets = train.context_offsets
    tokens = [train.token_ids[offsets[c] : offsets[c + 1]] for c in contexts.tolist()]
    return len(np.unique(np.concatenate(tokens)))


def profile(
    blueprint: Blueprint,
    prepared: Prepared,
    stage: Stage,
    hardware: Hardware,
    budget_s: float,
    clock: Clock | None = None,
    both_ways: bool = True,
) -> StageProfile:
    """Costs of a stage, by a step without values.

    Args:
        budget_s: seconds to try out operations in, on CPUs.
        both_ways: activations with checkpointing as well as without.
    """
    unit, share = _unit(blueprint, prepared, stage)
    train = prepared.training
    plan = batch_plan(unit, train)
    task = make_task(unit.task.name, prepared.labels, unit.task)
    rows = unit.table.shape[0] if task.objective.uses_table else None
    graph = blueprint.topology.graph
    topology = Topology(graph, tuple(1 for _ in graph.stages))
    feed = training_feed(unit, train, plan, topology, rows)
    step, tokens, usual = _largest(unit, train, plan, stage)
    found = dry_step(unit, prepared, stage, feed, step)
    checkpoints = unit.stages[stage].activation_checkpointing
    activations = {checkpoints: int(found.activations)}
    if both_ways and (other := _otherwise(unit, stage)) is not None:
        turned = dry_step(other, prepared, stage, feed, step)
        activations[not checkpoints] = int(turned.activations)
    threads = threads_of(blueprint.stages[stage], blueprint)
    timing = _timing(found, hardware, threads, budget_s, clock)
    return StageProfile(
        stage=stage,
        step=step,
        counts=count(blueprint, stage, prepared),
        tokens=tokens,
        usual=usual,
        share_tokens=share,
        least_tokens=int(train.context_lengths.max()) if stage.reads == "contexts" else 1,
        costs={phase: _cost(own, timing) for phase, own in found.ops.items()},
        activations=activations,
        profiled_with_checkpointing=checkpoints,
        peak=int(found.peak),
        link_bytes=found.link_bytes,
        layer_parameters=found.layer_parameters,
    )


def threads_of(own: StageBlueprint, blueprint: Blueprint) -> int:
    """CPU threads of a rank, where this machine is shared out evenly if the config doesn't say."""
    if own.threads is not None:
        return own.threads
    return max(1, len(os.sched_getaffinity(0)) // blueprint.topology.num_ranks)


def _unit(blueprint: Blueprint, prepared: Prepared, stage: Stage) -> tuple[Blueprint, int]:
    """A run of one micro-batch a step as a rank of the stage has it, or the ranks that share
    contexts together, and its tokens."""
    parts = blueprint.topology.num_groups(stage) * blueprint.schedule.micro_batches
    longest = int(prepared.training.context_lengths.max())
    own = max(blueprint.batches.tokens // parts, longest)
    windows = blueprint.batches.windows
    limits = {"batch_tokens": own, "batch_windows": windows and max(windows // parts, 1)}
    unit = blueprint.altered(data=limits, schedule={"micro_batches": 1})
    return unit, unit.batches.step_tokens


def _otherwise(blueprint: Blueprint, stage: Stage) -> Blueprint | None:
    """With activation checkpointing if it has none, without if it has; None: the architecture
    can't."""
    from tsarch.models.adapters import can_checkpoint

    own = blueprint.stages[stage]
    if not can_checkpoint(own.architecture.config):
        return None
    turned = replace(own, activation_checkpointing=not own.activation_checkpointing)
    return replace(blueprint, stages={**blueprint.stages, stage: turned})


def _largest(
    unit: Blueprint, train: TokenizedSplit, plan: BatchPlan, stage: Stage
) -> tuple[int, int, float]:
    """(step, tokens, those of the mean step over these) of the step that holds most."""
    batches = plan.block(0, 0)
    if stage.reads == "contexts":
        inputs = [train.context_lengths[own] for own in batches]
        if not is_unpadded(unit, stage):
            inputs = [np.full_like(own, own.max()) for own in inputs]
    else:
        lengths, offsets = np.diff(train.windows, axis=1).ravel(), train.window_offsets
        inputs = [
            np.concatenate([lengths[offsets[c] : offsets[c + 1]] for c in own.tolist()])
            for own in batches
        ]
    _, width = head_shape(unit.stages[stage].architecture.built)
    tokens = [int(own.sum()) for own in inputs]
    held = [
        own.sum() + np.square(own[own <= unit.products_up_to]).sum() / (_SCORES * width)
        for own in inputs
    ]
    step = int(np.argmax(held))
    return step, tokens[step], float(np.mean(tokens)) / max(tokens[step], 1)


def _timing(
    found: DryStep, hardware: Hardware, threads: int, budget_s: float, clock: Clock | None
) -> Timing:
    if not hardware.is_cpu:
        return Timing(hardware, {}, {True: 1.0, False: 1.0})
    numbers: dict[Op, float] = defaultdict(float)
    for own in found.ops.values():
        for op, number in own.items():
            numbers[op] += number
    further = () if clock is None else (clock,)
    return measure(numbers, found.examples, hardware, threads, budget_s, *further)


def _cost(ops: Mapping[Op, float], timing: Timing) -> Cost:
    overhead_s = timing.hardware.overhead_s
    number = sum(ops.values())
    whole_s = sum(times * timing.seconds(op) for op, times in ops.items())
    fixed_s = min(number * overhead_s, whole_s)
    return Cost(
        sum(times * op.flops for op, times in ops.items()),
        sum(times * op.moved_bytes for op, times in ops.items()),
        whole_s - fixed_s,
        fixed_s,
    )
