"""A stage's step without values: the real stage, executor and tied table, on fake tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tsarch.blueprint import Blueprint, StageBlueprint
from tsarch.data.feed import Feed
from tsarch.errors import UserError, one_line
from tsarch.models.construction import num_elements, put
from tsarch.models.skeleton import layer_stacks, make_skeleton
from tsarch.parallel.table import Table
from tsarch.parallel.tied_embedding import TiedEmbedding
from tsarch.planning.dry_ops import Example, Op, Recorder, dry
from tsarch.planning.dry_parts import DryEngine, DryLink, DryLocalEngine, stepped_optimizer
from tsarch.prepare import Prepared
from tsarch.rank.activity import Activity
from tsarch.rank.building import make_matched, quicken, trained_objective
from tsarch.rank.executor import Executor
from tsarch.schedule.instruction import (
    Backward,
    FinishTiedExchange,
    Forward,
    Instruction,
    OptimizerStep,
    StartTiedExchange,
)
from tsarch.schedule.plan import StepRange, training_programs
from tsarch.stage.build import outline_model, prediction_spec
from tsarch.stage.engine import Engine
from tsarch.stage.running import RunningStage
from tsarch.stage.student_stage import StudentStage
from tsarch.stage.teacher_stage import TeacherStage
from tsarch.tasks.base import num_outputs
from tsarch.tasks.registry import make_task
from tsarch.topology import Stage

_PHASES: dict[type[Any], str] = {
    Forward: "forward",
    Backward: "backward",
    OptimizerStep: "step",
    StartTiedExchange: "tied",
    FinishTiedExchange: "tied",
}
_FEW_LAYERS = 3
"""Models of so many are run as they are."""


@dataclass(frozen=True)
class DryStep:
    """What a rank of a stage does in one step of one micro-batch."""

    ops: Mapping[str, Mapping[Op, float]]
    """`forward`, `backward`, `step` (the optimizer's), `tied` (the exchanges of the table), `link`
    → operations and how often. (An optimizer's over lists of parameters is another one with each
    layer more: then the shorter one counts negatively, which adds up right.)"""
    examples: Mapping[Op, Example]
    activations: float
    """Most bytes alive beside weights, gradients and optimizer state."""
    peak: float
    """The same with gradients, which come bit by bit while activations go."""
    link_bytes: float
    """Sent by this rank: hidden states, or their gradients."""
    layer_parameters: int
    """Of the largest layer; of models whose layers can't be told apart 0."""


class _Phases(Activity):
    """Tells the recorder what is being done."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def begin(self, instruction: Instruction) -> None:
        """The next instruction."""
        self._recorder.phase = _PHASES.get(type(instruction), "link")


def dry_step(
    blueprint: Blueprint, prepared: Prepared, stage: Stage, feed: Feed, step: int
) -> DryStep:
    """What the only rank of a stage does in a step of one micro-batch. Models of many layers are
    run with few of them, and with one more of each kind; what that one adds counts as often as
    there are layers of its kind."""

    def run(layers: Sequence[int] | None) -> DryStep:
        return _run(_with_layers(blueprint, stage, layers), prepared, stage, feed, step)

    kinds = None
    if not (
        blueprint.distillation.pairs_layers or blueprint.stages[stage].depths
    ):  # else they are told apart by their numbers
        kinds = _kinds_of_layers(blueprint.stages[stage])
    if kinds is None:
        return run(None)
    first = [layers[0] for layers in kinds]
    more = [(sorted([*first, own[1]]), len(own) - 1) for own in kinds if len(own) > 1]
    return _extended(run(sorted(first)), [(run(layers), number) for layers, number in more])


def _extended(base: DryStep, more: Sequence[tuple[DryStep, int]]) -> DryStep:
    """`base`, and as often as is said what the others have more."""
    examples = dict(base.examples)
    ops: dict[str, dict[Op, float]] = {phase: dict(own) for phase, own in base.ops.items()}
    activations, peak = base.activations, base.peak
    for other, number in more:
        examples |= other.examples
        activations += number * (other.activations - base.activations)
        peak += number * (other.peak - base.peak)
        for phase, own in other.ops.items():
            mine = ops.setdefault(phase, {})
            for op in {**own, **base.ops.get(phase, {})}:
                added = own.get(op, 0.0) - base.ops.get(phase, {}).get(op, 0.0)
                mine[op] = mine.get(op, 0.0) + number * added
    return DryStep(ops, examples, activations, peak, base.link_bytes, base.layer_parameters)


def _kinds_of_layers(own: StageBlueprint) -> list[list[int]] | None:
    """Layers that are alike, by number; None: all of them are to be run."""
    architecture = own.architecture
    has_parts = own.freeze == "all_but_top_k" or own.boundary_layer is not None
    if has_parts or architecture.is_seq2seq:
        return None
    try:
        stacks = layer_stacks(make_skeleton(architecture.config, architecture.layers).model)
    except UserError:  # ALBERT shares its layers
        return None
    if len(stacks) != 1 or len(stacks[0][1]) <= _FEW_LAYERS:
        return None
    types = getattr(architecture.built, "layer_types", None)
    kinds: dict[object, list[int]] = {}
    for number, layer in enumerate(stacks[0][1]):
        shapes = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
        kinds.setdefault((shapes, types[number] if types else None), []).append(number)
    return list(kinds.values()) if len(kinds) < len(stacks[0][1]) // 2 else None


def _with_layers(blueprint: Blueprint, stage: Stage, layers: Sequence[int] | None) -> Blueprint:
    """The run with some layers of a stage alone, and no values that could be moved."""
    own = blueprint.stages[stage]
    architecture, before = own.architecture, own.architecture.layers
    if layers is not None:
        chosen = tuple(layers if before is None else (before[layer] for layer in layers))
        architecture = replace(architecture, layers=chosen)
    smaller = replace(own, architecture=architecture, offload_activations=False)
    return replace(blueprint, stages={**blueprint.stages, stage: smaller})


def _run(blueprint: Blueprint, prepared: Prepared, stage: Stage, feed: Feed, step: int) -> DryStep:
    task = make_task(blueprint.task.name, prepared.labels, blueprint.task)
    outputs, first = num_outputs(task, len(prepared.labels)), feed.topology.stages[0]
    module = outline_model(blueprint, stage, outputs[stage.reads])
    quicken(blueprint, stage, module)
    predictions = prediction_spec(blueprint, first, outputs[first.reads])
    matched = make_matched(blueprint)  # asks models without values, which are no fake ones
    link = DryLink(torch.float32 if blueprint.link_dtype == "fp32" else torch.bfloat16)
    with dry() as recorder:
        engine = _engine(blueprint, stage, module)
        tied = _tied(blueprint, prepared, task.objective.uses_table)
        objective = trained_objective(blueprint, prepared, task, stage)
        running: RunningStage
        if stage.reads == "contexts":
            is_joint = blueprint.schedule.name == "joint"
            running = TeacherStage(stage, engine, tied, 0, objective, None, is_joint)
        else:
            own = predictions, objective, blueprint.distillation, matched
            running = StudentStage(stage, engine, tied, 0, *own, scorer=blueprint.scorer)
        engine.train(True)
        executor = Executor({stage: running}, link, tied, lambda _: 1.0, _Phases(recorder))
        before = recorder.ground = recorder.ledger.live
        _leave_out_gradients(recorder, module)
        ticks = _ticks(blueprint, feed, stage, step)
        executor.load({stage: ticks}, feed)
        with _told(recorder, blueprint, stage):
            reports = executor.advance(len(ticks))
        recorder.phase = ""
    passes = ("forward", "backward")
    return DryStep(
        recorder.ops,
        recorder.examples,
        max(recorder.peaks.get(phase, 0) for phase in passes),
        max(recorder.most.get(phase, 0) for phase in passes) - before,
        sum(report.link_bytes for report in reports),
        _layer_parameters(module),
    )


@contextmanager
def _told(recorder: Recorder, blueprint: Blueprint, stage: Stage) -> Iterator[None]:
    """Say what model it is that can't be run without values.

    Raises:
        UserError: it can't.
    """
    try:
        yield
    except Exception as error:
        if recorder.failed is None and not isinstance(error, RuntimeError):
            raise
        kind = blueprint.stages[stage].architecture.config.model_type
        named = "" if recorder.failed is None else f" ({recorder.failed})"
        what = f"{kind} can't be run without values, as for a plan{named}: {one_line(error)}"
        hint = "`tsarch train` takes it, and checks whether its states fit."
        raise UserError.single(f"{stage}", what.rstrip(".") + ".", hint) from error


def _layer_parameters(module: nn.Module) -> int:
    layers = [
        own for stack in module.modules() if isinstance(stack, nn.ModuleList) for own in stack
    ]
    return max(map(num_elements, layers), default=0)


def _ticks(blueprint: Blueprint, feed: Feed, stage: Stage, step: int) -> tuple[Any, ...]:
    schedule = blueprint.schedule
    programs = training_programs(
        schedule.name,
        StepRange(step, step + 1),
        train_embedding=not blueprint.table.frozen,
        in_flight=schedule.in_flight,
        graph=feed.topology.graph,
    )
    return programs[stage]


def _engine(blueprint: Blueprint, stage: Stage, module: nn.Module) -> Engine:
    own = blueprint.stages[stage]
    is_local = blueprint.runner.is_one_process
    in_bf16 = blueprint.precision == "bf16" and not is_local  # which casts it by itself
    dtype = torch.bfloat16 if in_bf16 else torch.float32
    for name, parameter in list(module.named_parameters()):
        put(module, name, torch.empty(parameter.shape, dtype=dtype))
    for name, buffer in list(module.named_buffers()):
        floating = buffer.dtype.is_floating_point
        whole = torch.zeros(buffer.shape, dtype=buffer.dtype)
        put(module, name, torch.empty(buffer.shape, dtype=dtype) if floating else whole)
    if is_local:
        return DryLocalEngine(module, own.optimizer, blueprint.precision)
    return DryEngine(module, own.optimizer, dtype, own.engine.zero_stage)


def _tied(blueprint: Blueprint, prepared: Prepared, uses_table: bool) -> TiedEmbedding:
    own = blueprint.table
    trained = None if uses_table else prepared.training.distinct_tokens

    def optimizer(rows: nn.Parameter) -> torch.optim.Optimizer:
        return stepped_optimizer([{"params": [rows], "weight_decay": 0.0}], own.optimizer)

    return TiedEmbedding(
        Table(torch.empty(own.shape), trained),
        None if own.frozen else optimizer,
        own.optimizer.learning_rate,
        own.optimizer.clip_norm,
        own.exchange,
        None,
        blueprint.topology,
        num_local_stages=1,
    )


def _leave_out_gradients(recorder: Recorder, module: nn.Module) -> None:
    """Take gradients out of what is counted as activations, as they come (and go: an engine may
    have taken those of an earlier pass)."""
    before, trained = recorder.ground, [p for p in module.parameters() if p.requires_grad]

    def came(_: nn.Parameter) -> None:
        recorder.ground = before + sum(p.grad.nbytes for p in trained if p.grad is not None)

    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(came)  # type: ignore[no-untyped-call]
