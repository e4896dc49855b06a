"""The feeds of a run: training steps, and evaluation batches of a split."""

from __future__ import annotations

from tsarch.config import Config
from tsarch.data.feed import Feed
from tsarch.data.loader import BatchPlan, evaluation_batches
from tsarch.data.window_passes import evaluation_passes, training_passes
from tsarch.records import TokenizedSplit
from tsarch.topology import Topology


def batch_plan(config: Config, train: TokenizedSplit) -> BatchPlan:
    """Batches of all epochs of the training split."""
    return BatchPlan(
        train.context_lengths,
        config.data.batch_tokens,
        config.data.num_buckets,
        config.schedule.epochs,
        config.run.seed,
    )


def num_training_steps(config: Config, plan: BatchPlan) -> int:
    """Steps of the run: all epochs, or `schedule.max_steps`."""
    return min(plan.num_steps, config.schedule.max_steps or plan.num_steps)


def training_feed(
    config: Config,
    train: TokenizedSplit,
    plan: BatchPlan,
    topology: Topology,
    vocabulary: int | None = None,
) -> Feed:
    """Training batches. The teacher's predictions travel only if they are distilled.

    `vocabulary` is needed where the table is the output projection.
    """
    train.check_labels("training")
    student, seed = config.student, config.run.seed
    return Feed(
        train,
        topology,
        config.schedule.micro_batches,
        plan.contexts,
        lambda step, contexts: training_passes(
            train,
            contexts,
            seed,
            step,
            student.teacher_dropout,
            student.alone_weight,
            student.fed_weight,
        ),
        send_predictions=config.distillation.weight > 0,
        vocabulary=vocabulary,
    )


def evaluation_feed(
    config: Config, split: TokenizedSplit, topology: Topology, vocabulary: int | None = None
) -> tuple[Feed, int]:
    """Evaluation batches and their number; every window is read fed and alone."""
    batches = evaluation_batches(split.context_lengths, config.evaluation.batch_tokens)
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
