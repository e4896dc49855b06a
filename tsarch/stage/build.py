"""From the config to the models of the two stages. Config stops here: models take plain values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from tsarch.config import BackboneConfig, Config
from tsarch.data.tokenizer import resolve_model_path
from tsarch.models.adapters import add_adapters, checkpoint_activations
from tsarch.models.backbone import (
    Backbone,
    backbone_config,
    build_backbone,
    freeze_backbone,
    select_layers,
)
from tsarch.models.student import StudentModel
from tsarch.models.teacher import TeacherModel
from tsarch.seeding import torch_seed
from tsarch.stage.engine import OptimizerSpec
from tsarch.topology import Stage


@dataclass
class BuiltModel:
    """A stage's model and, if the tied table starts from its backbone, that table."""

    module: nn.Module
    table: Tensor | None


def optimizer_spec(config: Config, stage: Stage) -> OptimizerSpec:
    """Optimizer numbers of a stage."""
    o = config.optimizer
    teacher = stage is Stage.TEACHER
    return OptimizerSpec(
        name=o.name,
        learning_rate=o.teacher_learning_rate if teacher else o.student_learning_rate,
        weight_decay=o.weight_decay,
        betas=(o.beta1, o.beta2),
        epsilon=o.epsilon,
        momentum=o.momentum,
        clip_norm=o.clip_norm,
        head_learning_rate_factor=o.head_learning_rate_factor,
    )


def embedding_spec(config: Config) -> OptimizerSpec:
    """Optimizer numbers of the tied table: no weight decay, its own rate."""
    o = config.optimizer
    return OptimizerSpec(
        name=o.name,
        learning_rate=o.embedding_learning_rate,
        weight_decay=0.0,
        betas=(o.beta1, o.beta2),
        epsilon=o.epsilon,
        momentum=o.momentum,
        clip_norm=o.clip_norm,
    )


def stage_config(config: Config, stage: Stage) -> PretrainedConfig:
    """Hugging Face config of a stage's backbone (of the teacher's, for `student.layers`)."""
    source: BackboneConfig = config.teacher if stage is Stage.TEACHER else config.student
    own = source
    if stage is Stage.STUDENT and config.student.layers is not None:
        source = config.teacher
    path = None if source.model is None else resolve_model_path(source.model)
    return backbone_config(path, source.config, own.dropout, own.attention_dropout)


def table_shape(config: Config) -> tuple[int, int]:
    """(vocabulary, width) of the tied table, without loading weights."""
    hf = stage_config(config, Stage(config.embedding.init))
    return int(hf.vocab_size), embedding_width(hf)


def embedding_width(hf: PretrainedConfig) -> int:
    """Width of an architecture's embeddings (ALBERT and ELECTRA have one of their own)."""
    return int(getattr(hf, "embedding_size", None) or hf.hidden_size)


def build_teacher(config: Config, num_labels: int) -> BuiltModel:
    """The teacher's model, with pretrained or (seeded) random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(config.run.seed, "teacher weights"))
        backbone = _backbone(config, Stage.TEACHER)
        _adapt(config, Stage.TEACHER, backbone)
        width = table_shape(config)[1]
        module = TeacherModel(backbone, width, num_labels, config.teacher.dropout)
    return BuiltModel(module, backbone.table if config.embedding.init == "teacher" else None)


def build_student(config: Config, num_labels: int) -> BuiltModel:
    """The student's model: pretrained, random, or made of layers of the teacher."""
    layers = config.student.layers
    teacher_width = int(stage_config(config, Stage.TEACHER).hidden_size)
    with torch.random.fork_rng(devices=[]):
        seed = torch_seed(config.run.seed, "student weights")
        if layers is None:
            torch.manual_seed(seed)
            backbone = _backbone(config, Stage.STUDENT)
        else:
            torch.manual_seed(torch_seed(config.run.seed, "teacher weights"))
            teacher = _backbone(config, Stage.TEACHER)
            torch.manual_seed(seed)
            student = config.student
            backbone = select_layers(teacher, layers, student.dropout, student.attention_dropout)
        _adapt(config, Stage.STUDENT, backbone)
        module = StudentModel(
            backbone,
            table_shape(config)[1],
            teacher_width,
            num_labels,
            config.student.dropout,
            learned_no_teacher=config.student.no_teacher == "learned",
        )
    return BuiltModel(module, backbone.table if config.embedding.init == "student" else None)


def _backbone(config: Config, stage: Stage) -> Backbone:
    source: BackboneConfig = config.teacher if stage is Stage.TEACHER else config.student
    path = None if source.model is None else resolve_model_path(source.model)
    return build_backbone(stage_config(config, stage), path)


def _adapt(config: Config, stage: Stage, backbone: Backbone) -> None:
    """Freezing, adapters and checkpointing, as the config says."""
    own: BackboneConfig = config.teacher if stage is Stage.TEACHER else config.student
    freeze_backbone(backbone.model, own.freeze, own.top_k)
    lora = own.lora
    if lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(config.run.seed, f"{stage} adapters"))
            add_adapters(backbone.model, lora.rank, lora.alpha, lora.dropout, lora.target_modules)
    if own.activation_checkpointing:
        checkpoint_activations(backbone.model)
