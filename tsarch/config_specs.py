"""Sections of a config as the plain numbers of `specs.py`."""

from __future__ import annotations

from tsarch.architecture import Architecture
from tsarch.config import Config, StudentConfig
from tsarch.schedule.plan import Alternation
from tsarch.specs import (
    BatchSpec,
    BridgeSpec,
    DraftingSpec,
    RunnerSpec,
    ScheduleSpec,
    ScorerSpec,
    UnlabelledSpec,
)
from tsarch.topology import Stage


def runner_spec(config: Config) -> RunnerSpec:
    """Where ranks run."""
    own = config.topology
    return RunnerSpec(
        name=own.runner,
        device=own.device,
        threads=own.threads,
        cpus_per_rank=own.cpus_per_rank,
        min_replicas=own.min_replicas,
        spares=own.spares,
        timeout_s=own.timeout_s,
        wait_for_nodes_s=own.wait_for_nodes_s,
        is_auto=own.auto,
    )


def batch_spec(config: Config) -> BatchSpec:
    """What batches are made of."""
    own, unlabelled = config.data, unlabelled_spec(config)
    return BatchSpec(
        own.batch_tokens,
        own.batch_windows,
        own.num_buckets,
        own.shuffled_contexts,
        config.evaluation.batch_tokens,
        config.context_tokens,
        own.unpadded,
        unlabelled.ratio if unlabelled.is_used else 0.0,
    )


def bridge_spec(student: StudentConfig, source: Architecture | None) -> BridgeSpec | None:
    """How a teacher of an architecture feeds the student."""
    if source is None:
        return None
    own = student.drafting
    return BridgeSpec(
        stage=Stage.TEACHER,
        source=source,
        learned_no_teacher=student.no_teacher == "learned",
        scale=student.bridge_scale,
        multiplier=student.bridge_multiplier,
        shortcut=student.shortcut,
        teacher_dropout=student.teacher_dropout,
        alone_weight=student.alone_weight,
        fed_weight=student.fed_weight,
        fed_share=student.fed_share,
        drafting=DraftingSpec(**own.model_dump()) if student.role == "drafter" else None,
        scorer=None if student.scorer is None else ScorerSpec(**student.scorer.model_dump()),
    )


def unlabelled_spec(config: Config) -> UnlabelledSpec:
    """How text without labels is learned."""
    own = config.unlabelled
    return UnlabelledSpec(
        is_used=config.data.unlabelled is not None,
        ratio=own.ratio,
        weight=own.weight,
        temperature=own.temperature or config.distillation.temperature,
        min_confidence=own.min_confidence,
    )


def schedule_spec(config: Config) -> ScheduleSpec:
    """Order and number of updates."""
    own = config.schedule
    return ScheduleSpec(
        name=own.name,
        alternation=Alternation(own.alternation.teacher_steps, own.alternation.student_steps),
        micro_batches=own.micro_batches,
        in_flight=own.in_flight,
        epochs=own.epochs,
        max_steps=own.max_steps,
    )
