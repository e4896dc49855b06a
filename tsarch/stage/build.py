"""From the blueprint to the models of the stages, for real or without memory for their values."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsarch.blueprint import Blueprint, StageBlueprint
from tsarch.host_memory import collect_as_usual
from tsarch.models.adapters import add_adapters, checkpoint_activations
from tsarch.models.backbone import Backbone, build_backbone, cut_out_table, freeze_backbone
from tsarch.models.construction import SAVED, WHOLE, Construction
from tsarch.models.depths import name_of_finish
from tsarch.models.drafter_model import DrafterModel, feed
from tsarch.models.inner_states import InnerStates, show_attention
from tsarch.models.loading import check_weights
from tsarch.models.measures import measure
from tsarch.models.output_head import (
    OutputHead,
    OutputSpec,
    build_output,
    check_output,
    outline_output,
)
from tsarch.models.skeleton import make_skeleton
from tsarch.models.slice_scorer import SliceScorer
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.models.unpadded import Unpadded, is_exact
from tsarch.models.weight_files import check_safetensors, open_checkpoint
from tsarch.pair.pair import Pair
from tsarch.parallel.groups import choose_device
from tsarch.seeding import torch_seed
from tsarch.specs import BridgeSpec, DraftingSpec, PredictionSpec
from tsarch.stage.matching import layer_pairs, shown_of
from tsarch.topology import Reads, Stage


@dataclass
class BuiltModel:
    """A stage's model and, if the tied table starts from its backbone, that table."""

    module: nn.Module
    table: Tensor | None


def build_model(
    blueprint: Blueprint,
    stage: Stage,
    num_outputs: int | None,
    construction: Construction = WHOLE,
    with_table: bool = True,
) -> BuiltModel:
    """A stage's model, with pretrained or (seeded) random weights.

    Every rank of the stage calls it; `with_table` only where the table is wanted.
    """
    own = blueprint.stages[stage]
    architecture = own.architecture

    def seed_of(name: str) -> int:
        return torch_seed(blueprint.seed, f"{architecture.section} weights {name}")

    with torch.random.fork_rng(devices=[]):
        backbone = build_backbone(
            architecture.config,
            architecture.path,
            seed_of,
            architecture.layers,
            construction,
            with_table and blueprint.table.stage is stage,
            feed if _is_drafter(own) else None,
        )
        output = None
        if (spec := _own_output(own, num_outputs)) is not None:
            checkpoint = None if architecture.path is None else open_checkpoint(architecture.path)
            width = blueprint.table.shape[1]
            output = build_output(
                architecture.config, spec, width, seed_of, checkpoint, construction
            )
        module = _complete(blueprint, own, backbone, num_outputs, output)
    construction.settle(list(module.parameters()))
    collect_as_usual()
    return BuiltModel(module, backbone.table)


def is_unpadded(blueprint: Blueprint, stage: Stage) -> bool:
    """Whether padding is left out of what a stage computes in training."""
    if blueprint.drafting is not None:  # states of several layers, several steps
        return False
    return blueprint.batches.unpadded and is_exact(blueprint.stages[stage].architecture.config)


def unpad(blueprint: Blueprint, stage: Stage, module: nn.Module) -> None:
    """Have a stage's model read batches without padding, if that is wanted and exact."""
    if is_unpadded(blueprint, stage):
        assert isinstance(module, TeacherModel | StudentModel)
        module.unpadded = Unpadded(module.backbone)


def show(blueprint: Blueprint, stage: Stage, module: nn.Module) -> None:
    """Have a stage's model show what is matched of its inside while it trains, whatever attention
    it has by now."""
    shown = shown_of(blueprint, stage)
    if shown:
        assert isinstance(module, TeacherModel | StudentModel)
        if shown.parts:
            show_attention(module.backbone)
        module.inner = InnerStates(module.backbone, shown)


def has_fixed_states(blueprint: Blueprint, stage: Stage) -> bool:
    """Whether nothing that a stage's hidden states come from is trained."""
    own, table = blueprint.stages[stage], blueprint.table
    projects = own.architecture.embedding_width != table.shape[1]
    return own.freeze == "all_but_head" and table.frozen and not projects


def keeps_states(blueprint: Blueprint, stage: Stage) -> bool:
    """Whether a stage computes its states once in training. Not where ranks gather the backbone's
    parameters from one another (ZeRO 3), which all must do alike, whatever each has kept."""
    own = blueprint.stages[stage]
    is_whole = own.engine.zero_stage < 3 or blueprint.runner.is_one_process
    if blueprint.distillation.shows:  # more leaves than states
        return False
    if blueprint.data.augmentation.is_used:  # other tokens in every epoch
        return False
    if blueprint.topology.num_slices(stage) > 1:  # of what ranks share each has other parts
        return False
    return is_whole and blueprint.data.keep_states_gb > 0 and has_fixed_states(blueprint, stage)


def build_pair(
    blueprint: Blueprint,
    num_outputs: Mapping[Reads, int | None],
    weights: Mapping[Stage, Mapping[str, Tensor]] | None = None,
    table: Tensor | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    stages: Collection[Stage] | None = None,
) -> Pair:
    """The pair, or the one model that there is, as training starts, or with saved `weights` and
    `table`; `num_outputs`: of what each reads; `device`: None is the CPU; `stages`: those whose
    models are wanted, None is all."""
    how, with_table = WHOLE if weights is None else SAVED, table is None
    wanted = blueprint.stages if stages is None else stages
    models = {
        stage: build_model(blueprint, stage, num_outputs[stage.reads], how, with_table)
        for stage in wanted
    }
    for stage, state in ({} if weights is None else weights).items():
        _put(models[stage].module, state)
    if table is None:
        table = next(model.table for model in models.values() if model.table is not None)
    modules = {stage.reads: model.module for stage, model in models.items()}
    return Pair(table, modules.get("contexts"), modules.get("windows"), device, dtype)


def _put(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put copies of saved values in the places of a model's own, in the types that these have: what
    was read may still be a part of its file, which somebody may write anew."""
    own = module.state_dict()
    kept = {n: v.to(own[n].dtype if n in own else v.dtype, copy=True) for n, v in state.items()}
    module.load_state_dict(kept, assign=True)
    values = itertools.chain(module.parameters(), module.buffers())
    assert not any(value.is_meta for value in values), "a value is in no file"


def outline_model(blueprint: Blueprint, stage: Stage, num_outputs: int | None) -> nn.Module:
    """What `build_model` builds, on the meta device: every parameter's shape, none's values."""
    own = blueprint.stages[stage]
    measures = measure(own.architecture.config)
    spec = _own_output(own, num_outputs)  # looks into the files, so not on the meta device
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        skeleton = make_skeleton(own.architecture.config, own.architecture.layers)
        if _is_drafter(own):
            feed(skeleton.model)
        output = None
        if spec is not None:
            output = outline_output(own.architecture.config, spec, blueprint.table.shape[1])
        return _complete(
            blueprint, own, cut_out_table(skeleton.model, measures), num_outputs, output
        )


def prediction_spec(blueprint: Blueprint, stage: Stage, num_outputs: int | None) -> PredictionSpec:
    """What a stage's model says of a position."""
    spec = _own_output(blueprint.stages[stage], num_outputs)
    if spec is not None:
        return PredictionSpec(spec.num_rows, are_logits=True)
    return PredictionSpec(num_outputs or blueprint.table.shape[1], are_logits=False)


def _is_drafter(own: StageBlueprint) -> bool:
    return own.bridge is not None and own.bridge.drafting is not None


def _own_output(own: StageBlueprint, num_outputs: int | None) -> OutputSpec | None:
    """The language model's own head, where the task is over the vocabulary and vectors that are
    compared with the table won't do."""
    if _is_drafter(own):
        return None  # it is compared with the table, whatever its teacher has
    if num_outputs is not None or not own.architecture.output.gives_logits:
        return None
    return own.architecture.output


def _complete(
    blueprint: Blueprint,
    own: StageBlueprint,
    backbone: Backbone,
    num_outputs: int | None,
    output: OutputHead | None,
) -> nn.Module:
    """The model around a backbone, what is frozen frozen and adapters put in."""
    _adapt(blueprint, own, backbone)
    table, dropout = blueprint.table, own.architecture.dropout
    scale = table.scale if num_outputs is None else 1.0
    torch.manual_seed(torch_seed(blueprint.seed, f"{own.stage} weights"))
    if own.stage.reads == "contexts":
        return _teacher(blueprint, own, backbone, num_outputs, scale, output)
    if own.bridge is None:
        return StudentModel(
            backbone,
            table.shape[1],
            0,
            num_outputs,
            dropout,
            table_scale=scale,
            depths=own.depths,
            finish=name_of_finish(own.architecture.built) if own.depths else "",
            output=output,
        )
    if own.bridge.drafting is not None:
        return _drafter(blueprint, own.bridge.drafting, backbone, dropout, scale)
    # A shortcut's is the feeding stage's, so that it starts as that stage's head does.
    shortcut_seed = torch_seed(blueprint.seed, f"{own.bridge.stage} weights")
    return StudentModel(
        backbone,
        table.shape[1],
        own.bridge.source.hidden_width,
        num_outputs,
        dropout,
        learned_no_teacher=own.bridge.learned_no_teacher,
        bridge_scale=own.bridge.scale,
        bridge_multiplier=own.bridge.multiplier,
        table_scale=scale,
        shortcut_seed=shortcut_seed if own.bridge.shortcut else None,
        matched_layers=[student for student, _ in layer_pairs(blueprint)],
        depths=own.depths,
        finish=name_of_finish(own.architecture.built) if own.depths else "",
        boundary_layer=own.boundary_layer,
        output=output,
        scorer=_scorer(blueprint, own.bridge),
    )


def _scorer(blueprint: Blueprint, bridge: BridgeSpec) -> SliceScorer | None:
    """What tells which parts of a text a student reads."""
    if bridge.scorer is None:
        return None
    widths = blueprint.table.shape[1], bridge.source.hidden_width
    seed = torch_seed(blueprint.seed, "slice scorer")
    return SliceScorer(*widths, bridge.scorer.dimensions, seed)


def _teacher(
    blueprint: Blueprint,
    own: StageBlueprint,
    backbone: Backbone,
    num_outputs: int | None,
    scale: float,
    output: OutputHead | None,
) -> TeacherModel:
    width, dropout = blueprint.table.shape[1], own.architecture.dropout
    layers = own.boundary_layer, blueprint.taps, own.first_position
    teacher = TeacherModel(backbone, width, num_outputs, dropout, scale, output, *layers)
    teacher.is_fixed = has_fixed_states(blueprint, own.stage)
    return teacher


def _drafter(
    blueprint: Blueprint,
    drafting: DraftingSpec,
    backbone: Backbone,
    dropout: float,
    scale: float,
) -> DrafterModel:
    vocabulary, width = blueprint.table.shape
    num_choices = min(drafting.vocabulary, vocabulary)
    fed = blueprint.teacher_width
    return DrafterModel(backbone, width, fed, drafting.steps, num_choices, dropout, scale)


def _adapt(blueprint: Blueprint, own: StageBlueprint, backbone: Backbone) -> None:
    """Freezing, adapters and checkpointing."""
    freeze_backbone(backbone.model, own.freeze, own.top_k)
    lora = own.lora
    if lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(blueprint.seed, f"{own.stage} adapters"))
            add_adapters(backbone.model, lora.rank, lora.alpha, lora.dropout, lora.target_modules)
    if own.activation_checkpointing:
        is_on_gpu = choose_device(blueprint.runner.device).type == "cuda"
        checkpoint_activations(backbone.model, own.offload_activations and is_on_gpu)


def check_stage_weights(own: StageBlueprint, is_generative: bool) -> None:
    """Check without reading values that a stage's model can be built from its weights.

    Raises:
        UserError: it can't; a model on the hub is not downloaded, so only for want of
            safetensors files.
    """
    architecture = own.architecture
    skeleton = make_skeleton(architecture.config, architecture.layers)
    path = architecture.path
    if path is None:
        return
    check_safetensors(path)
    if os.path.isdir(path):
        checkpoint = open_checkpoint(path)
        check_weights(skeleton, checkpoint)
        if is_generative and architecture.output.gives_logits:
            check_output(architecture.config, architecture.output, checkpoint)
