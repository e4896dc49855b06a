"""Whether a run can start from the weights of another one (`run.start_from`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tsarch.blueprint import Blueprint
from tsarch.errors import Mistake, UserError, one_line
from tsarch.model_folder import start_labels

if TYPE_CHECKING:
    from tsarch.topology import Stage

_MOST_NAMED = 3


def start_mistakes(blueprint: Blueprint) -> Iterator[Mistake]:
    """What is wrong with the folder that a run starts from: names and shapes of its weights must be
    those of the run's models; no values are read."""
    if blueprint.run.start_from is None:
        return
    try:
        labels = start_labels(blueprint)
        assert labels is not None
        folder = Path(blueprint.run.start_from)
        wanted = _wanted(blueprint, labels)
        files = {stage.value: folder / f"{stage}.safetensors" for stage in blueprint.stages}
        found = {name: _shapes(file) for name, file in files.items()}
        found["embedding"] = _shapes(folder / "embedding.safetensors")
    except UserError as error:
        yield from error.mistakes
        return
    for name, shapes in wanted.items():
        yield from _differences(f"run.start_from: {folder}/{name}.safetensors", shapes, found[name])


def _wanted(blueprint: Blueprint, labels: tuple[str, ...]) -> dict[str, dict[str, list[int]]]:
    """File → weight → shape."""
    from tsarch.stage.build import outline_model
    from tsarch.tasks.base import num_outputs
    from tsarch.tasks.registry import make_task

    task = make_task(blueprint.task.name, labels, blueprint.task)
    outputs = num_outputs(task, len(labels))

    def shapes(stage: Stage) -> dict[str, list[int]]:
        state = outline_model(blueprint, stage, outputs[stage.reads]).state_dict()
        return {name: list(value.shape) for name, value in state.items()}

    wanted = {stage.value: shapes(stage) for stage in blueprint.stages}
    return {**wanted, "embedding": {"weight": list(blueprint.table.shape)}}


def _shapes(file: Path) -> dict[str, list[int]]:
    """Weight → shape.

    Raises:
        UserError: the file can't be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as weights:
            return {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        where = f"run.start_from: {file}"
        raise UserError.single(where, f"can't be read: {one_line(error)}.") from None


def _differences(
    where: str, wanted: dict[str, list[int]], found: dict[str, list[int]]
) -> Iterator[Mistake]:
    names = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if names:
        some = ", ".join(
            f"{name} {found.get(name, 'missing')} where {wanted.get(name, 'none')} is wanted"
            for name in names[:_MOST_NAMED]
        )
        what = f"holds other weights than this run's models have ({len(names):,}): {some}."
        yield Mistake(where, what, "Leave the models as that run had them.")
