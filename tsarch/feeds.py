"""The feeds of a run: training steps, and evaluation batches of a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from tsarch.blueprint import Blueprint
from tsarch.data.altering import Alteration
from tsarch.data.feed import Feed, Passes
from tsarch.data.loader import BatchPlan, Limits, evaluation_batches
from tsarch.data.mixing import MixedPlan, MixedSplit
from tsarch.data.window_passes import (
    alone_passes,
    evaluation_passes,
    num_terms,
    training_passes,
    without_labels,
)
from tsarch.records import IntArray, TokenizedSplit
from tsarch.topology import Topology

_LEAST_BATCHES = 8
"""Of a split that two stages evaluate."""


def batch_plan(blueprint: Blueprint, train: TokenizedSplit) -> BatchPlan:
    """Batches of all epochs of `Prepared.training`; of the training split alone as many steps, with
    the same labelled contexts."""
    batches = blueprint.batches
    settings = (
        Limits(batches.tokens, batches.windows),
        batches.num_buckets,
        blueprint.schedule.epochs,
        blueprint.seed,
        batches.shuffled_contexts,
        None if batches.windows is None else np.diff(train.window_offsets),
    )
    if isinstance(train, MixedSplit):
        ratio = blueprint.unlabelled.ratio
        return MixedPlan(train.context_lengths, train.num_labelled, ratio, *settings)
    return BatchPlan(train.context_lengths, *settings)


def num_training_steps(blueprint: Blueprint, plan: BatchPlan) -> int:
    """Steps of the run: all epochs, or `schedule.max_steps`."""
    return min(plan.num_steps, blueprint.schedule.max_steps or plan.num_steps)


def training_feed(
    blueprint: Blueprint,
    train: TokenizedSplit,
    plan: BatchPlan,
    topology: Topology,
    vocabulary: int | None = None,
    per_sequence: bool = False,
    alteration: Alteration | None = None,
) -> Feed:
    """Training batches. The teacher's predictions travel only if they are distilled.

    `vocabulary` is needed where the table is the output projection, `per_sequence` (what losses are
    means over, see `Objective`) where text without labels is mixed in. `alteration`: of the
    training split's tokens, in every epoch.
    """
    train.check_labels("training")
    seed, distillation = blueprint.seed, blueprint.distillation
    bridges = [own.bridge for own in blueprint.stages.values() if own.bridge is not None]

    def passes(step: int, contexts: IntArray) -> Passes:
        if not bridges:
            return alone_passes(train, contexts)
        bridge = bridges[0]
        own = training_passes(
            train,
            contexts,
            seed,
            step,
            bridge.teacher_dropout,
            bridge.alone_weight,
            bridge.fed_weight,
            bridge.fed_share,
        )
        return _with_unlabelled(blueprint, train, contexts, own, per_sequence)

    return Feed(
        train,
        topology,
        blueprint.schedule.micro_batches,
        plan.contexts,
        passes,
        send_predictions=distillation.sends_predictions,
        vocabulary=vocabulary,
        send_all=distillation.reads_unfed,
        send_shown=distillation.shows,
        split_of=None if alteration is None else _altered(train, plan, alteration),
    )


def _with_unlabelled(
    blueprint: Blueprint,
    train: TokenizedSplit,
    contexts: IntArray,
    own: Passes,
    per_sequence: bool,
) -> Passes:
    """The passes over the windows of contexts, some of which may have no labels."""
    beside = contexts[~train.labelled(contexts)]
    if len(beside) == 0:
        return own
    known = contexts[train.labelled(contexts)]
    weight = blueprint.unlabelled.weight
    weight *= num_terms(train, known, per_sequence) / num_terms(train, beside, per_sequence)
    return without_labels(own, train, beside, weight, blueprint.distillation.taught_passes)


def _altered(
    train: TokenizedSplit, plan: BatchPlan, alteration: Alteration
) -> Callable[[int], TokenizedSplit]:
    """Step → the split as it is in the step's epoch; what has no labels stays as it is."""

    @lru_cache(maxsize=2)  # a student may be an epoch behind
    def of_epoch(epoch: int) -> TokenizedSplit:
        own = alteration.of_epoch(epoch)
        rest = train.token_ids[len(own) :]
        return replace(train, token_ids=np.concatenate([own, rest]))

    return lambda step: of_epoch(plan.position(step).epoch)


def evaluation_feed(
    blueprint: Blueprint,
    split: TokenizedSplit,
    topology: Topology,
    vocabulary: int | None = None,
) -> tuple[Feed, int]:
    """Evaluation batches, of `evaluation.batch_tokens` at most, and their number; every window is
    read alone and, if there is a teacher, fed."""
    is_fed = bool(topology.graph.edges)
    tokens = blueprint.batches.evaluation_tokens
    if is_fed:  # the student waits for the first batch, and the teacher is idle during the last one
        lengths = split.context_lengths
        share = -(-int(lengths.sum()) // _LEAST_BATCHES)
        tokens = min(tokens, max(share, int(lengths.max(initial=0))))
    batches = evaluation_batches(split.context_lengths, tokens)
    feed = Feed(
        split,
        topology,
        1,
        lambda step: batches[step],
        lambda _, contexts: evaluation_passes(split, contexts, fed=is_fed),
        send_predictions=is_fed and "teacher" in blueprint.modes,
        vocabulary=vocabulary,
    )
    return feed, len(batches)
