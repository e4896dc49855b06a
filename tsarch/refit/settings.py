"""What a refit is asked for, and the run that it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tsarch.blueprint import Blueprint, resolve
from tsarch.config_loading import load_config
from tsarch.errors import Mistake, UserError
from tsarch.model_folder import saved_config
from tsarch.refit.rows import UNLABELLED, plain_data
from tsarch.topology import Stage

_CLOSED = (
    *("task.", "embedding.init", "embedding.project", "run.name", "run.folder", "run.start_from"),
    *("teacher.model", "teacher.config", "teacher.lora", "student.model", "student.config"),
    *("student.layers", "student.num_layers", "student.depths", "student.lora", "student.shortcut"),
    *("student.no_teacher", "data.tokenizer"),
    *("distillation.hidden_weight", "distillation.hidden_layers"),
    *("student.role", "student.drafting", "student.scorer"),
    *("teacher.boundary_layer", "student.boundary_layer"),
)
"""Beginnings of keys that a trained model has settled, or a refit sets."""
_PLACES = ("train", "validation", "test", "hub", "hub_config", "validation_share")
"""Keys of `data` that say where the run's own rows are; others say how the new ones are read."""


@dataclass(frozen=True)
class Request:
    """Options of `tsarch refit`."""

    replay: float = 0.5
    """Share of the old training documents that are trained on again."""
    held_out: float = 0.2
    """Share of the new documents that are measured, and not trained on."""
    margin: float = 1.0
    """Points that the new version may lose on the old test set."""
    epochs: int = 3
    rate_factor: float = 0.3
    """Factor on the run's learning rates."""
    keep: int = 5
    """Versions whose weights are kept."""
    overrides: tuple[str, ...] = ()
    """`key=value` of the config."""

    def as_json(self) -> dict[str, Any]:
        """For records."""
        return {**asdict(self), "overrides": list(self.overrides)}

    def sets(self, key: str) -> bool:
        """Whether an override names a key, or something in it."""
        return any(own.strip().startswith(key) for own in self.overrides)


@dataclass(frozen=True)
class Sources:
    """The run as it was trained, and with the overrides."""

    old: Blueprint
    """Reads the run's own rows, wherever they are now."""
    new: Blueprint
    """Reads the new rows, and trains."""


def sources(run: Path, request: Request, data: Sequence[str]) -> Sources:
    """Read a run's config, and what is changed of it.

    Args:
        data: files of the new rows; two for parallel texts.

    Raises:
        UserError: an override can't be followed.
    """
    mistakes = [
        Mistake(f"--set {own}", "can't be changed: the run's models are trained already.")
        for own in request.overrides
        if own.strip().startswith(_CLOSED)
    ]
    if mistakes:
        raise UserError(mistakes)
    trained = resolve(load_config(run / "config.yaml"))
    changed = resolve(load_config(run / "config.yaml", request.overrides, base=Path.cwd()))
    places = {name: getattr(changed.data, name) for name in _PLACES}
    paths = [str(Path(own).expanduser().absolute()) for own in data]
    file = paths[0] if len(paths) == 1 else paths
    return Sources(trained.altered(data=places), changed.altered(data={"hub": None, "train": file}))


def refit_blueprint(
    new: Blueprint, request: Request, parent: Path, rows: Path, folder: Path
) -> Blueprint:
    """The run that a refit trains.

    Args:
        parent: run folder of the version that it goes on from.
        rows: folder of its rows.
        folder: run folder to write.
    """
    model = parent / "model"
    files = {split: str(rows / f"{split}.jsonl") for split in ("train", "validation", "test")}
    if new.data.unlabelled is not None:
        files["unlabelled"] = str(rows / UNLABELLED)
    data = plain_data(new.task.name, **files)
    built = resolve(saved_config(new.config, model, data))
    return built.altered(
        run={"folder": str(folder), "start_from": str(model)},
        schedule=_unless_set(request, "schedule", epochs=request.epochs, max_steps=None),
        optimizer=_unless_set(request, "optimizer", **_rates(new, request.rate_factor)),
        evaluation=_unless_set(request, "evaluation", before=False),
        checkpoint=_unless_set(request, "checkpoint", folder=None, keep_last=1),
    )


def _unless_set(request: Request, section: str, **values: Any) -> dict[str, Any]:
    return {key: own for key, own in values.items() if not request.sets(f"{section}.{key}")}


def _rates(new: Blueprint, factor: float) -> dict[str, float]:
    rates = {
        "teacher_learning_rate": Stage.TEACHER,
        "student_learning_rate": Stage.STUDENT,
    }
    own = {
        name: new.stages[stage].optimizer.learning_rate * factor
        for name, stage in rates.items()
        if stage in new.stages
    }
    return {**own, "embedding_learning_rate": new.table.optimizer.learning_rate * factor}
