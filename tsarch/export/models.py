"""The models of a finished run as plain modules: adapters merged, values in fp32."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tsarch.blueprint import Blueprint
from tsarch.errors import UserError, one_line
from tsarch.model_folder import TaskFile, load_table, load_weights
from tsarch.models.drafter_model import DrafterModel
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.run.saved_run import open_run
from tsarch.stage.build import build_model
from tsarch.tasks.base import num_outputs
from tsarch.tasks.registry import is_generative, make_task
from tsarch.topology import Stage


@dataclass(frozen=True)
class TrainedModels:
    """A run's models, ready to be written in another form."""

    folder: Path
    """Of the run, or of its version."""
    blueprint: Blueprint
    task_file: TaskFile
    table: Tensor
    """(vocabulary, table_width) fp32."""
    modules: Mapping[Stage, nn.Module]
    """In `eval`, on the CPU, without adapters."""
    merged: tuple[Stage, ...]
    """Stages that had adapters."""

    @property
    def is_generative(self) -> bool:
        """Whether answers are texts."""
        return is_generative(self.task_file.task)

    @property
    def teacher(self) -> TeacherModel | None:
        """What reads contexts; None: there is none."""
        return next((own for own in self.modules.values() if isinstance(own, TeacherModel)), None)

    @property
    def student(self) -> StudentModel | None:
        """What reads windows and answers; None: there is none."""
        return next((own for own in self.modules.values() if isinstance(own, StudentModel)), None)

    @property
    def drafter(self) -> DrafterModel | None:
        """What proposes; None: there is none."""
        return next((own for own in self.modules.values() if isinstance(own, DrafterModel)), None)


def read_models(folder: Path) -> TrainedModels:
    """The models of a run's best weights.

    Raises:
        UserError: the folder is not a complete run, or its files are damaged.
    """
    blueprint, task_file = open_run(folder)
    task = make_task(task_file.task, task_file.labels, blueprint.task)
    outputs = num_outputs(task, len(task_file.labels))
    modules: dict[Stage, nn.Module] = {}
    merged = []
    try:
        table = load_table(folder / "model").float()
        for stage in blueprint.stages:
            module = build_model(blueprint, stage, outputs[stage.reads], with_table=False).module
            module.load_state_dict(load_weights(folder / "model", stage))
            if merge_adapters(module):
                merged.append(stage)
            modules[stage] = module.float().eval().requires_grad_(False)
    except UserError:
        raise
    except Exception as error:  # torch and safetensors raise errors of their own
        hint = "Copy the run folder whole, or resume or repeat the run."
        where = str(folder / "model")
        raise UserError.single(where, f"can't be read: {one_line(error)}.", hint) from None
    return TrainedModels(folder, blueprint, task_file, table, modules, tuple(merged))


def merge_adapters(module: nn.Module) -> bool:
    """Add low-rank adapters to the weights that they stand beside, in place; whether there were
    any."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = [(name, own) for name, own in module.named_modules() if isinstance(own, BaseTunerLayer)]
    for name, layer in found:
        layer.merge()
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, layer.get_base_layer())
    return bool(found)


def folded_table(module: nn.Module, table: Tensor, alone: bool) -> Tensor:
    """(vocabulary, embedding_width) what a model's layers are given for each token: the table in
    the model's own width and, of a student that reads alone, with what stands for the teacher."""
    assert isinstance(module, TeacherModel | StudentModel)
    with torch.no_grad():
        rows: Tensor = module.projection(table)
        if alone and isinstance(module, StudentModel) and module.bridge is not None:
            rows = rows + module.no_teacher
        return rows.detach().clone()


def without_projection(module: nn.Module, alone: bool) -> nn.Module:
    """The model that takes rows of `folded_table`; alone: a student whom nobody feeds."""
    own = copy.deepcopy(module)
    assert isinstance(own, TeacherModel | StudentModel)
    own.projection = nn.Identity()
    own.unpadded = None
    if isinstance(own, StudentModel):
        own.hidden_map = own.scorer = None
        if alone:
            own.bridge = own.shortcut = None
    return own
