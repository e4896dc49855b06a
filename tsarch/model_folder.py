"""The `model/` folder of a run: weights as safetensors, and what is needed to build the models.

teacher.safetensors  student.safetensors  embedding.safetensors
teacher/config.json  student/config.json  tokenizer/  task.json
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsarch.architecture import SAVED_OUTPUT, Architecture
from tsarch.blueprint import Blueprint
from tsarch.config import Config
from tsarch.errors import UserError, one_line
from tsarch.tasks.registry import is_generative
from tsarch.topology import STAGES, Stage

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TaskFile:
    """What a saved pair needs beside its weights."""

    task: str
    labels: tuple[str, ...]
    joint_weight: float
    """Weight of the teacher's probabilities in `joint`, chosen on validation."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Split → digest of the data that the run had."""
    transformers: str = ""
    """Version of transformers whose models these were compared with."""
    window_special_tokens: bool = False
    """Whether the tokenizer's special tokens stand around a student's window. They never do: who
    runs the student elsewhere must leave them out (`add_special_tokens=False`)."""


def save_weights(folder: Path, stage: Stage, state: dict[str, Tensor]) -> None:
    """Write a stage's weights."""
    from safetensors.torch import save_file

    save_file(state, folder / f"{stage}.safetensors")


def load_weights(folder: Path, stage: Stage) -> Mapping[str, Tensor]:
    """A stage's weights, each read when it is asked for."""
    from tsarch.checkpoint.saved_tensors import SavedTensors

    return SavedTensors([folder / f"{stage}.safetensors"])


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Whatever keeps files of a model from being written, as one message."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError.single(
            str(folder),
            f"can't be written: {one_line(error)}.",
            "Make room there, then go on from the last checkpoint with --resume.",
        ) from None


def save_table(folder: Path, table: Tensor) -> None:
    """Write the tied embedding."""
    from safetensors.torch import save_file

    save_file({"weight": table.cpu().contiguous()}, folder / "embedding.safetensors")


def load_table(folder: Path) -> Tensor:
    """Read the tied embedding."""
    from safetensors.torch import load_file

    table: Tensor = load_file(folder / "embedding.safetensors")["weight"]
    return table


def save_description(folder: Path, blueprint: Blueprint, task: TaskFile) -> None:
    """Write configs, tokenizer and `task.json` beside the weights."""
    for stage, own in blueprint.stages.items():
        own.architecture.built.save_pretrained(folder / stage.value)
        if is_generative(task.task):
            _save_output(folder / stage.value / "config.json", own.architecture)
    blueprint.tokenizer().save_pretrained(folder / "tokenizer")
    save_task(folder, task)


def _save_output(file: Path, architecture: Architecture) -> None:
    """Write into a model's config how it gives logits: its files said so, which aren't needed any
    more."""
    raw = json.loads(file.read_text(encoding="utf-8"))
    output = architecture.output
    raw["tie_word_embeddings"] = not output.owns_matrix
    raw[SAVED_OUTPUT] = asdict(output)
    file.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_task(folder: Path, task: TaskFile) -> None:
    """Write `task.json`."""
    (folder / "task.json").write_text(json.dumps(asdict(task), indent=2) + "\n", encoding="utf-8")


def load_task(folder: Path) -> TaskFile:
    """Read `task.json`.

    Raises:
        UserError: the student was trained on windows that are not made here.
    """
    raw = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    if raw.get("window_special_tokens", False):
        what = "says that the student reads special tokens around its windows; here it never does."
        raise UserError.single(str(folder / "task.json"), what)
    return TaskFile(
        str(raw["task"]),
        tuple(map(str, raw["labels"])),
        float(raw["joint_weight"]),
        {str(split): str(digest) for split, digest in raw.get("data", {}).items()},
        str(raw.get("transformers", "")),
    )


def start_labels(blueprint: Blueprint) -> tuple[str, ...] | None:
    """Labels of the run that this one starts from; None: it starts anew.

    Raises:
        UserError: that run isn't there, or has another task.
    """
    if blueprint.run.start_from is None:
        return None
    folder = Path(blueprint.run.start_from)
    where = f"run.start_from: {folder}"
    if not (folder / "task.json").is_file():
        hint = "Name the folder `model` of a finished run."
        raise UserError.single(where, "is not there, or has no task.json.", hint)
    task = load_task(folder)
    if task.task != blueprint.task.name:
        what = f"was trained for {task.task}, this run is for {blueprint.task.name}."
        raise UserError.single(where, what)
    return task.labels


def files_digest(paths: Iterable[Path], more: str = "") -> str:
    """Hexadecimal digest of files, in this order, and of what else tells them from others."""
    digest = hashlib.sha256(more.encode())
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def replace_folder(new: Path, old: Path) -> None:
    """Put the complete folder `new` in the place of `old`."""
    aside = old.with_name(old.name + ".old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)


def saved_config(config: Config, folder: Path, data: Mapping[str, Any] | None = None) -> Config:
    """The config changed so that models and tokenizer are built from `folder` alone; `data`: other
    keys of its section, with their values."""
    sections = {}
    for stage in STAGES:
        section = getattr(config, stage.name)
        if section is None:
            continue
        raw = json.loads((folder / stage.value / "config.json").read_text(encoding="utf-8"))
        fields: dict[str, object] = {"model": None, "config": raw}
        if stage is Stage.STUDENT:
            fields |= {"layers": None, "num_layers": None}
            fields["boundary_layer"] = config.student_boundary
        sections[stage.name] = section.model_copy(update=fields)
    own = {**(data or {}), "tokenizer": str(folder / "tokenizer")}
    changed = config.data.model_copy(update=own)
    run = config.run.model_copy(update={"start_from": None})
    return config.model_copy(update={**sections, "data": changed, "run": run})


def depths_of(config: Config) -> list[int]:
    """Numbers of layers that a run's student works with; none are named: it is one student."""
    return [] if config.student is None else config.student.depths or []


def config_at_depth(config: Config, depth: int, folder: str) -> Config:
    """The config of a run of its own `folder` that has the student's first `depth` layers alone,
    without what only training needs of its inside."""
    assert config.student is not None
    student: dict[str, object] = {"depths": [depth]}
    if isinstance(config.student.layers, list):
        student |= {"layers": config.student.layers[:depth], "num_layers": None}
    nothing = {"hidden_weight": 0.0, "relation_weight": 0.0}
    sections = {
        "student": config.student.model_copy(update=student),
        "distillation": config.distillation.model_copy(update=nothing),
        "run": config.run.model_copy(update={"folder": folder}),
    }
    return config.model_copy(update=sections)
