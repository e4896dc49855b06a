"""From the blueprint to the parts of a rank: models, engines, the tied table and the link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tsarch.blueprint import Blueprint
from tsarch.losses.objective import LabelObjective, Objective
from tsarch.model_folder import load_table, load_weights
from tsarch.models.attention import attend_by_products
from tsarch.models.construction import num_elements, put_weights
from tsarch.models.drafter_model import DrafterModel
from tsarch.models.fast_dropout import use_fast_dropout
from tsarch.models.sequence_parallel import SequenceParallel
from tsarch.models.teacher_model import TeacherModel
from tsarch.parallel.groups import ProcessGroup
from tsarch.parallel.link import GroupLink, Link, LoopbackLink
from tsarch.parallel.table import Table
from tsarch.parallel.tied_embedding import TiedEmbedding
from tsarch.prepare import Prepared
from tsarch.rank.executor import LocalStages
from tsarch.rank.wiring import Wiring
from tsarch.specs import PredictionSpec
from tsarch.stage.build import BuiltModel, build_model, keeps_states, prediction_spec, show, unpad
from tsarch.stage.deepspeed_sequence import gather_over, spread_over
from tsarch.stage.engine import Engine, make_optimizer
from tsarch.stage.kept_states import KeptStates
from tsarch.stage.matched import Matched
from tsarch.stage.matching import matching_of
from tsarch.stage.running import RunningStage
from tsarch.stage.student_stage import StudentStage
from tsarch.stage.teacher_stage import TeacherStage
from tsarch.tasks.base import Task, num_outputs, objective_of
from tsarch.tasks.registry import make_task
from tsarch.topology import Reads, Stage

_TARGETS_COUNT = 4
"""A token of a target, against one of a context."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Parts:
    """What a rank is made of."""

    task: Task
    engines: Mapping[Stage, Engine]
    """Of the stages here."""
    stages: LocalStages
    tied: TiedEmbedding
    """This process's replica of the table."""
    link: Link
    num_parameters: Mapping[str, int]
    """Of each stage here and of the table (`embedding`)."""
    predictions: Mapping[Stage, PredictionSpec]
    """Of all stages, here or not."""

    @property
    def vocabulary(self) -> int | None:
        """Rows of the table, if every step touches them all."""
        return len(self.tied.table) if self.task.objective.uses_table else None

    def train(self, mode: bool) -> None:
        """Switch dropout on or off."""
        for engine in self.engines.values():
            engine.train(mode)


def build_parts(
    blueprint: Blueprint, prepared: Prepared, wiring: Wiring, kept: Parts | None = None
) -> Parts:
    """Build everything that is in this process (all ranks call it: the table is broadcast).

    Args:
        kept: of this rank before other ranks failed: its engines are taken over, whatever is in
            them.
    """
    task = make_task(blueprint.task.name, prepared.labels, blueprint.task)
    outputs = num_outputs(task, len(prepared.labels))
    models = _models(blueprint, wiring, outputs) if kept is None else _kept_models(kept)
    if blueprint.drafting is not None and kept is None:
        _choose_drafted(blueprint, prepared, models)
    tied = _tie(blueprint, prepared, wiring, task, models)
    sizes = {stage.value: num_elements(model.module) for stage, model in models.items()}
    engines = (
        kept.engines
        if kept is not None
        else {
            stage: wiring.make_engine(stage, model.module, blueprint.stages[stage].optimizer)
            for stage, model in models.items()
        }
    )
    predictions = {s: prediction_spec(blueprint, s, outputs[s.reads]) for s in blueprint.stages}
    stages = _stages(blueprint, prepared, wiring, task, engines, tied, predictions)
    sizes["embedding"] = tied.table.storage.numel()
    link = _link(blueprint, wiring)
    return Parts(task, engines, stages, tied, link, sizes, predictions)


def _models(
    blueprint: Blueprint, wiring: Wiring, outputs: Mapping[Reads, int | None]
) -> Mapping[Stage, BuiltModel]:
    """The models as training starts (all ranks of a stage call it)."""
    models = {
        stage: build_model(
            blueprint, stage, outputs[stage.reads], wiring.construction, with_table=replica == 0
        )
        for stage, replica in wiring.stages
    }
    if blueprint.run.start_from is not None:
        models = _started(Path(blueprint.run.start_from), wiring, models)
    for stage, model in models.items():
        quicken(blueprint, stage, model.module, wiring.sequence_group)
    return models


def _choose_drafted(
    blueprint: Blueprint, prepared: Prepared, models: Mapping[Stage, BuiltModel]
) -> None:
    """Have a drafter choose from the tokens that train has most often, in targets above all."""
    train, vocabulary = prepared.splits["train"], blueprint.table.shape[0]
    counts = np.bincount(train.token_ids, minlength=vocabulary)
    counts = counts + _TARGETS_COUNT * train.label_counts(vocabulary)
    for model in models.values():
        if isinstance(model.module, DrafterModel):
            model.module.choose(torch.from_numpy(counts))


def _kept_models(kept: Parts) -> Mapping[Stage, BuiltModel]:
    table = kept.tied.table.values()
    return {stage: BuiltModel(own.module, table) for stage, own in kept.engines.items()}


def quicken(
    blueprint: Blueprint,
    stage: Stage,
    module: nn.Module,
    sequence_group: ProcessGroup | None = None,
) -> None:
    """What a stage's model that trains does in another way than one that only answers: the same but
    for rounding. With a `sequence_group` it reads slices of contexts that its ranks share."""
    backbone = module.backbone
    assert isinstance(backbone, PreTrainedModel)
    attend_by_products(backbone, blueprint.products_up_to)
    use_fast_dropout(module)
    if sequence_group is None:
        unpad(blueprint, stage, module)  # of whatever attention it has by now
        show(blueprint, stage, module)
        return
    assert isinstance(module, TeacherModel)
    module.sequence_parallel = SequenceParallel(backbone, spread_over(sequence_group))


def _started(
    folder: Path, wiring: Wiring, models: Mapping[Stage, BuiltModel]
) -> dict[Stage, BuiltModel]:
    """The models with the weights of a finished run (all ranks of a stage call it)."""
    started = {}
    for stage, model in models.items():
        put_weights(model.module, load_weights(folder, stage), wiring.construction)
        table = None if model.table is None else load_table(folder)
        started[stage] = BuiltModel(model.module, table)
    return started


def _tie(
    blueprint: Blueprint,
    prepared: Prepared,
    wiring: Wiring,
    task: Task,
    models: Mapping[Stage, BuiltModel],
) -> TiedEmbedding:
    """This process's replica of the table; it comes from the stage that has it."""
    own, spec = blueprint.table, blueprint.table.optimizer
    found: Tensor | None = next((m.table for m in models.values() if m.table is not None), None)
    table = torch.zeros(own.shape) if found is None else found

    def optimizer(rows: nn.Parameter) -> torch.optim.Optimizer:
        return make_optimizer([{"params": [rows], "weight_decay": 0.0}], spec)

    trained = None
    if not task.objective.uses_table:
        trained = prepared.training.distinct_tokens
    tied = TiedEmbedding(
        Table(table.to(wiring.device), trained),
        None if own.frozen else optimizer,
        spec.learning_rate,
        spec.clip_norm,
        own.exchange,
        wiring.tied_group,
        wiring.topology,
        num_local_stages=len(wiring.stages),
        shard_optimizer=own.shard_optimizer,
        lifeline=wiring.lifeline,
    )
    tied.broadcast(wiring.topology.rank(own.stage, 0))
    return tied


def trained_objective(
    blueprint: Blueprint, prepared: Prepared, task: Task, stage: Stage
) -> Objective:
    """What a stage is trained for: the task's objective, with the weights that rare labels have."""
    weights, focal_gamma = prepared.label_weights, blueprint.loss.focal_gamma
    own = objective_of(task, stage.reads)
    is_weighed = isinstance(own, LabelObjective) and (weights is not None or focal_gamma > 0.0)
    return LabelObjective(weights, focal_gamma) if is_weighed else own


def make_matched(blueprint: Blueprint) -> Matched | None:
    """Compares what the models show of their inside, if that is wanted."""
    matching = matching_of(blueprint)
    return None if matching is None else Matched(matching, blueprint.distillation)


def _stages(
    blueprint: Blueprint,
    prepared: Prepared,
    wiring: Wiring,
    task: Task,
    engines: Mapping[Stage, Engine],
    tied: TiedEmbedding,
    predictions: Mapping[Stage, PredictionSpec],
) -> LocalStages:
    arriving = predictions[blueprint.topology.stages[0]]
    matched = make_matched(blueprint)

    def kept_of(stage: Stage) -> KeptStates | None:
        if not keeps_states(blueprint, stage):
            return None
        return KeptStates(int(blueprint.data.keep_states_gb * 1e9))

    def running(stage: Stage, replica: int) -> RunningStage:
        engine = engines[stage]
        objective = trained_objective(blueprint, prepared, task, stage)
        if stage.reads == "contexts":
            is_joint, group = blueprint.schedule.name == "joint", wiring.sequence_group
            gather = None if group is None else gather_over(group)
            return TeacherStage(
                stage, engine, tied, replica, objective, kept_of(stage), is_joint, gather
            )
        targets = None if prepared.taught is None else prepared.taught.targets
        return StudentStage(
            stage,
            engine,
            tied,
            replica,
            arriving,
            objective,
            blueprint.distillation,
            matched,
            blueprint.unlabelled if blueprint.unlabelled.is_used else None,
            targets,
            blueprint.scorer,
        )

    return {stage: running(stage, replica) for stage, replica in wiring.stages}


def _link(blueprint: Blueprint, wiring: Wiring) -> Link:
    dtype, group, topology = _DTYPES[blueprint.link_dtype], wiring.link_group, wiring.topology
    if group is None:
        return LoopbackLink(dtype)
    # The teacher may be a whole step ahead of the student, and each step's messages go to every
    # replica of the other stage.
    micro_batches = blueprint.schedule.micro_batches
    outstanding = 2 * micro_batches * max(topology.counts)
    return GroupLink(group, wiring.device, dtype, outstanding, wiring.lifeline)
