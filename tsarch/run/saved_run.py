"""A finished run, read back from its folder alone: evaluation without Ray and DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tsarch.blueprint import Blueprint, resolve
from tsarch.config import Mode
from tsarch.config_loading import load_config
from tsarch.errors import UserError, one_line
from tsarch.model_folder import TaskFile, load_table, load_task, load_weights, saved_config
from tsarch.pair.pair import Pair
from tsarch.planning.preflight import check_run
from tsarch.prepare import prepare_data
from tsarch.rank.api import RankApi
from tsarch.rank.local_crew import LocalCrew
from tsarch.run.evaluate import Evaluation, evaluate_modes, predict
from tsarch.run.texts import with_texts
from tsarch.stage.build import build_pair
from tsarch.tasks.registry import make_task


@contextmanager
def _told(model: Path) -> Iterator[None]:
    """Whatever libraries raise for damaged files, as one message."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        hint = "Copy the run folder whole, or resume or repeat the run."
        raise UserError.single(str(model), f"can't be read: {one_line(error)}.", hint) from None


def open_run(run: Path) -> tuple[Blueprint, TaskFile]:
    """A finished run, built from its own folder alone.

    Raises:
        UserError: the folder is not a complete run.
    """
    model = run / "model"
    for needed in (run / "config.yaml", model / "task.json", model / "embedding.safetensors"):
        if not needed.is_file():
            raise UserError.single(
                str(run), f"is not a finished run ({needed.relative_to(run)} is missing)."
            )
    config = load_config(run / "config.yaml")
    with _told(model):
        task_file = load_task(model)
        blueprint = resolve(saved_config(config, model))
    if task_file.task != blueprint.task.name:
        raise UserError.single(
            str(run), f"was trained for {task_file.task}, its config says {blueprint.task.name}."
        )
    return blueprint, task_file


def saved_pair(run: Path) -> Pair:
    """The pair of a run's best weights.

    Raises:
        UserError: the folder is not a complete run, or its files are damaged.
    """
    blueprint, task_file = open_run(run)
    check_run(blueprint, own_ray=False)
    objective = make_task(task_file.task, task_file.labels).objective
    with _told(run / "model"):
        return build_pair(
            blueprint,
            objective.num_outputs(len(task_file.labels)),
            {stage: load_weights(run / "model", stage) for stage in blueprint.stages},
            load_table(run / "model"),
        )


def evaluate_run(run: Path, split: str, mode: Mode | None = None) -> tuple[Blueprint, Evaluation]:
    """Metrics of a run's best weights on one of its splits; texts are only generated as `mode`
    predicts them, if it is given.

    Raises:
        UserError: the folder is not a complete run, or its data has changed its labels.
    """
    model = run / "model"
    blueprint, task_file = open_run(run)
    if mode is not None and mode not in blueprint.modes:
        raise UserError.single(
            f"--mode {mode}", f"{run} has no such mode.", f"It has {', '.join(blueprint.modes)}."
        )
    check_run(blueprint, own_ray=False)
    prepared = prepare_data(blueprint)
    if prepared.labels != task_file.labels:
        raise UserError.single(
            str(run),
            f"was trained with the labels {task_file.labels}, the data has {prepared.labels}.",
        )
    with _told(model):
        crew = LocalCrew(blueprint, prepared)
        crew.ask(RankApi.load, model)
    weight = task_file.joint_weight
    task, own = make_task(task_file.task, prepared.labels), prepared.splits[split]
    predictions = predict(blueprint, task, crew, split, own, [weight])
    evaluation = evaluate_modes(task, own, predictions, weight)
    modes = None if mode is None else (mode,)
    return blueprint, with_texts(crew, blueprint, prepared, task, split, evaluation, modes)[0]
