"""How evenly a run's batches can be shared out: what the busiest of several replicas gets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tsarch.blueprint import Blueprint
from tsarch.data.partition import MicroBatchPlan, StepPlan
from tsarch.feeds import batch_plan, num_training_steps, training_feed
from tsarch.records import TokenizedSplit
from tsarch.topology import STAGES, Stage, Topology

_NUM_STEPS = 16


def busiest_shares(
    blueprint: Blueprint, train: TokenizedSplit, max_replicas: int
) -> dict[Stage, tuple[float, ...]]:
    """Share of the batch's work that the busiest of 1, 2, … replicas of a stage has.

    A mean over steps from all parts of the run; work is padded tokens of contexts (teacher) and
    tokens of all passes over windows (student). It ends with the most replicas, `max_replicas` or
    fewer, that all get work in every micro-batch of most steps.
    """
    plan = batch_plan(blueprint, train)
    places = np.linspace(0, num_training_steps(blueprint, plan) - 1, _NUM_STEPS)
    steps = sorted({round(place) for place in places.tolist()})
    shares: dict[Stage, tuple[float, ...]] = {}
    for stage in STAGES:
        work: list[int] = []
        for replicas in range(1, max(max_replicas, 1) + 1):
            feed = training_feed(blueprint, train, plan, _topology(stage, replicas))
            plans = [feed.plan(step) for step in steps]
            if replicas > 1 and np.median([_num_idle(stage, p) for p in plans]) > 0:
                break
            work.append(sum(_busiest_work(train, stage, p) for p in plans))
        shares[stage] = tuple(own / work[0] for own in work)
    return shares


def _topology(stage: Stage, replicas: int) -> Topology:
    return Topology.pair(replicas, 1) if stage is Stage.TEACHER else Topology.pair(1, replicas)


def _num_idle(stage: Stage, plan: StepPlan) -> int:
    """Parts of a step, over micro-batches and replicas, without any work."""
    shares = [_shares(stage, micro_batch) for micro_batch in plan.micro_batches]
    return sum(not own for micro_batch in shares for own in micro_batch)


def _shares(stage: Stage, plan: MicroBatchPlan) -> Sequence[Sequence[object]]:
    """What each replica of a stage has to do."""
    return plan.contexts[stage] if stage.reads == "contexts" else plan.passes[stage]


def _busiest_work(train: TokenizedSplit, stage: Stage, plan: StepPlan) -> int:
    """Tokens of the busiest replica of every micro-batch, added up."""
    lengths = train.context_lengths
    total = 0
    for m in plan.micro_batches:
        if stage.reads == "contexts":
            shares = m.contexts[stage]
            total += max(len(own) * max(lengths[list(own)], default=0) for own in shares)
        else:
            passes = m.passes[stage]
            total += max(sum(train.window_length(p.window) for p in own) for own in passes)
    return total
