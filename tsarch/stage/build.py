"""From the config to the models of the two stages. Config stops here: models take plain values."""

from __future__ import annotations

import os
from collections.abc import Mapping
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
)
from tsarch.models.construction import WHOLE, Construction
from tsarch.models.loading import check_weights
from tsarch.models.skeleton import make_skeleton
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.models.weight_files import check_safetensors, open_checkpoint
from tsarch.seeding import torch_seed
from tsarch.stage.engine import OptimizerSpec
from tsarch.topology import STAGES, Stage, stage_named


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


StageConfigs = Mapping[Stage, PretrainedConfig]
"""Hugging Face config of each stage's backbone (of the teacher's, for `student.layers`)."""


def stage_configs(config: Config) -> StageConfigs:
    """Read both configs. Each reading of a hub model is a request, so read once and pass on."""
    return {stage: stage_config(config, stage) for stage in STAGES}


def stage_config(config: Config, stage: Stage) -> PretrainedConfig:
    """Hugging Face config of a stage's backbone (of the teacher's, for `student.layers`)."""
    own: BackboneConfig = config.teacher if stage is Stage.TEACHER else config.student
    _, source = weights_source(config, stage)
    path = None if source.model is None else resolve_model_path(source.model)
    return backbone_config(path, source.config, own.dropout, own.attention_dropout)


def weights_source(config: Config, stage: Stage) -> tuple[Stage, BackboneConfig]:
    """The stage whose model or config a stage's weights come from: with `student.layers` the
    teacher, else itself."""
    if stage is Stage.TEACHER or config.student.layers is not None:
        return Stage.TEACHER, config.teacher
    return Stage.STUDENT, config.student


def table_shape(config: Config, configs: StageConfigs) -> tuple[int, int]:
    """(vocabulary, width) of the tied table, without loading weights."""
    hf = configs[stage_named(config.embedding.init)]
    return int(hf.vocab_size), embedding_width(hf)


def table_scale(config: Config, configs: StageConfigs) -> float:
    """Factor of what is compared with the table's rows to give logits: T5's tables want one
    (`scale_decoder_outputs` in transformers)."""
    hf = configs[stage_named(config.embedding.init)]
    wants_one = getattr(hf, "scale_decoder_outputs", False)
    return embedding_width(hf) ** -0.5 if wants_one else 1.0


def embedding_width(hf: PretrainedConfig) -> int:
    """Width of an architecture's embeddings (ALBERT and ELECTRA have one of their own)."""
    return int(getattr(hf, "embedding_size", None) or hf.hidden_size)


def build_teacher(
    config: Config,
    num_outputs: int | None,
    configs: StageConfigs | None = None,
    construction: Construction = WHOLE,
    with_table: bool = True,
) -> BuiltModel:
    """The teacher's model, with pretrained or (seeded) random weights.

    Every rank of the stage calls it; `with_table` only where the table is wanted. Without
    `configs` they are read here.
    """
    configs = configs or stage_configs(config)
    with torch.random.fork_rng(devices=[]):
        backbone = _backbone(config, configs, Stage.TEACHER, construction, with_table)
        _adapt(config, Stage.TEACHER, backbone)
        width = table_shape(config, configs)[1]
        torch.manual_seed(torch_seed(config.run.seed, "teacher weights"))
        module = TeacherModel(
            backbone, width, num_outputs, config.teacher.dropout, table_scale(config, configs)
        )
    construction.settle(list(module.parameters()))
    return BuiltModel(module, backbone.table)


def build_student(
    config: Config,
    num_outputs: int | None,
    configs: StageConfigs | None = None,
    construction: Construction = WHOLE,
    with_table: bool = True,
) -> BuiltModel:
    """The student's model: pretrained, random, or made of layers of the teacher.

    Every rank of the stage calls it; `with_table` only where the table is wanted. Without
    `configs` they are read here.
    """
    configs = configs or stage_configs(config)
    with torch.random.fork_rng(devices=[]):
        backbone = _backbone(config, configs, Stage.STUDENT, construction, with_table)
        _adapt(config, Stage.STUDENT, backbone)
        seed = config.run.seed
        torch.manual_seed(torch_seed(seed, "student weights"))
        module = StudentModel(
            backbone,
            table_shape(config, configs)[1],
            int(configs[Stage.TEACHER].hidden_size),
            num_outputs,
            config.student.dropout,
            learned_no_teacher=config.student.no_teacher == "learned",
            bridge_scale=config.student.bridge_scale,
            table_scale=table_scale(config, configs),
            # The teacher's, so that it starts as the teacher's head does.
            shortcut_seed=torch_seed(seed, "teacher weights") if config.student.shortcut else None,
        )
    construction.settle(list(module.parameters()))
    return BuiltModel(module, backbone.table)


def _backbone(
    config: Config,
    configs: StageConfigs,
    stage: Stage,
    construction: Construction,
    with_table: bool,
) -> Backbone:
    origin, source = weights_source(config, stage)
    return build_backbone(
        configs[stage],
        None if source.model is None else resolve_model_path(source.model),
        lambda name: torch_seed(config.run.seed, f"{origin} weights {name}"),
        config.student.layers if stage is Stage.STUDENT else None,
        construction,
        with_table and config.embedding.init == stage.name,
    )


def check_stage_weights(config: Config, configs: StageConfigs, stage: Stage) -> None:
    """Check without reading values that a stage's model can be built from its weights.

    Raises:
        UserError: it can't; a model on the hub is not downloaded, so only for want of
            safetensors files.
    """
    _, source = weights_source(config, stage)
    layers = config.student.layers if stage is Stage.STUDENT else None
    skeleton = make_skeleton(configs[stage], layers)
    if source.model is None:
        return
    path = resolve_model_path(source.model)
    check_safetensors(path)
    if os.path.isdir(path):
        check_weights(skeleton, open_checkpoint(path))


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
