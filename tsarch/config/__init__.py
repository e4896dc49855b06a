"""The run's configuration: one strict pydantic model a section, every field documented below it.

Defaults live here only. No torch: reading a config costs milliseconds.
"""

from __future__ import annotations

from tsarch.config.augmentation import AugmentationConfig
from tsarch.config.base import (
    MODES,
    STUDENT_MODES,
    Fraction,
    Mode,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    ProposalSource,
    Query,
    Section,
    SpanEnds,
)
from tsarch.config.control import ControlConfig
from tsarch.config.data import (
    Columns,
    DataConfig,
    DecodingConfig,
    TaskConfig,
    UnlabelledConfig,
)
from tsarch.config.models import (
    AttentionConfig,
    BackboneConfig,
    DistillationConfig,
    EmbeddingConfig,
    LoraConfig,
    LossConfig,
    StudentConfig,
    TeacherConfig,
)
from tsarch.config.root import Config
from tsarch.config.topology import AUTO, LinkConfig, StageTopology, TopologyConfig
from tsarch.config.training import (
    MEAN_MODES,
    TRACKERS,
    AlternationConfig,
    CheckpointConfig,
    EvaluationConfig,
    FailureConfig,
    LearningRateConfig,
    Monitor,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrackingConfig,
)

__all__ = [
    "AUTO",
    "MEAN_MODES",
    "MODES",
    "STUDENT_MODES",
    "TRACKERS",
    "AlternationConfig",
    "AttentionConfig",
    "AugmentationConfig",
    "BackboneConfig",
    "CheckpointConfig",
    "Columns",
    "Config",
    "ControlConfig",
    "DataConfig",
    "DecodingConfig",
    "DistillationConfig",
    "EmbeddingConfig",
    "EvaluationConfig",
    "FailureConfig",
    "Fraction",
    "LearningRateConfig",
    "LinkConfig",
    "LoraConfig",
    "LossConfig",
    "Mode",
    "Monitor",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OptimizerConfig",
    "PositiveFloat",
    "PositiveInt",
    "Probability",
    "ProposalSource",
    "Query",
    "RunConfig",
    "ScheduleConfig",
    "Section",
    "SpanEnds",
    "StageTopology",
    "StudentConfig",
    "TaskConfig",
    "TeacherConfig",
    "TopologyConfig",
    "TrackingConfig",
    "UnlabelledConfig",
]
