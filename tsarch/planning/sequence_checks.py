"""Checks of teachers whose ranks share contexts: which models can."""

from __future__ import annotations

from collections.abc import Iterator

from tsarch.blueprint import Blueprint, StageBlueprint
from tsarch.errors import Mistake


def sequence_mistakes(blueprint: Blueprint) -> Iterator[Mistake]:
    """Mistakes in `topology.teacher.sequence_parallel`."""
    for stage, own in blueprint.stages.items():
        if blueprint.topology.num_slices(stage) > 1:
            yield from _model_mistakes(own, f"topology.{stage}.sequence_parallel")


def _model_mistakes(own: StageBlueprint, where: str) -> Iterator[Mistake]:
    from tsarch.models.measures import heads_of
    from tsarch.models.sequence_parallel import can_share

    config, number = own.architecture.config, own.sequence_parallel
    if own.architecture.is_seq2seq:
        what = f"{config.model_type} is a sequence-to-sequence model, which reads whole contexts."
        yield Mistake(where, what, "Set it to 1, or take a causal model.")
        return
    if not can_share(config):
        yield Mistake(
            where,
            f"{config.model_type} mixes positions outside of attention, or in windows, or has an "
            "attention that can't be shared out: a small model computes other numbers of slices.",
            "Set it to 1, or take another architecture (BERT's or Llama's kin).",
        )
        return
    for heads, kind in zip(heads_of(config), ("attention heads", "heads of keys and values")):
        if heads % number:
            yield Mistake(
                where,
                f"is {number}, the model has {heads} {kind}, which are shared out among these "
                "ranks.",
                f"Take a divisor of {heads}.",
            )
            return
