"""The feeds of a run: training steps, and evaluation batches of a split."""

from __future__ import annotations

from tsarch.blueprint import Blueprint
from tsarch.data.feed import Feed
from tsarch.data.loader import BatchPlan, evaluation_batches
from tsarch.data.window_passes import evaluation_passes, training_passes
from tsarch.records import TokenizedSplit
from tsarch.topology import Stage, Topology


def batch_plan(blueprint: Blueprint, train: TokenizedSplit) -> BatchPlan:
    """Batches of all epochs of the training split."""
    return BatchPlan(
        train.context_lengths,
        blueprint.batches.tokens,
        blueprint.batches.num_buckets,
        blueprint.schedule.epochs,
        blueprint.seed,
    )


def num_training_steps(blueprint: Blueprint, plan: BatchPlan) -> int:
    """Steps of the run: all epochs, or `schedule.max_steps`."""
    return min(plan.num_steps, blueprint.schedule.max_steps or plan.num_steps)


def training_feed(
    blueprint: Blueprint,
    train: TokenizedSplit,
    plan: BatchPlan,
    topology: Topology,
    vocabulary: int | None = None,
) -> Feed:
    """Training batches. The teacher's predictions travel only if they are distilled.

    `vocabulary` is needed where the table is the output projection.
    """
    train.check_labels("training")
    bridge, seed = blueprint.stages[Stage.STUDENT].bridge, blueprint.seed
    assert bridge is not None
    return Feed(
        train,
        topology,
        blueprint.schedule.micro_batches,
        plan.contexts,
        lambda step, contexts: training_passes(
            train,
            contexts,
            seed,
            step,
            bridge.teacher_dropout,
            bridge.alone_weight,
            bridge.fed_weight,
        ),
        send_predictions=blueprint.distillation.weight > 0,
        vocabulary=vocabulary,
    )


def evaluation_feed(
    blueprint: Blueprint,
    split: TokenizedSplit,
    topology: Topology,
    vocabulary: int | None = None,
) -> tuple[Feed, int]:
    """Evaluation batches and their number; every window is read fed and alone."""
    batches = evaluation_batches(split.context_lengths, blueprint.batches.evaluation_tokens)
    feed = Feed(
        split,
        topology,
        1,
        lambda step: batches[step],
        lambda _, contexts: evaluation_passes(split, contexts),
        send_predictions=True,
        vocabulary=vocabulary,
    )
    return feed, len(batches)
