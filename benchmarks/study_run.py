"""One training run of the study, in a process of one thread; its result is one JSON file."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.study_models import Distilled, Learner, Trained, alone
from benchmarks.study_plan import DISTILLED, RunKey, RunResult, StudyTask
from benchmarks.study_tasks import TASKS
from tsarch.blueprint import resolve
from tsarch.config import Config
from tsarch.config_loading import load_config
from tsarch.feeds import batch_plan, num_training_steps
from tsarch.prepare import Prepared, prepare_data
from tsarch.tasks.registry import make_task
from tsarch.telling.run_folder import write_atomically
from tsarch.topology import Stage


def read_results(folder: Path, tasks: Sequence[StudyTask]) -> dict[RunKey, RunResult]:
    """Finished runs of `tasks`, as they are now, in the folder of a study."""
    found = [
        (task, RunResult.model_validate_json(file.read_text(encoding="utf-8")))
        for task in tasks
        for file in sorted((folder / task.name).glob("*.json"))
    ]
    return {
        result.key: result
        for task, result in found
        if result.settings == task.digest(result.key.method)
    }


def result_file(folder: Path, key: RunKey) -> Path:
    """Where a run's result is written when it is done."""
    return folder / f"{key.name}.json"


def run_config(task: StudyTask, folder: Path, key: RunKey) -> Config:
    """The config of a run: the task's file with the run's rates and seed, in one thread.

    The table takes the lower rate of both models where both use it.
    """
    rates = {
        "teacher": key.rates[0],
        "student": key.rates[-1],
        "embedding": key.rates[-1] if key.method == "distilled" else min(key.rates),
    }
    distilled = DISTILLED if key.method == "distilled" else {}
    overrides = [
        f"run.seed={key.seed}",
        f"schedule.epochs={task.epochs}",
        "topology.runner=local",
        "topology.device=cpu",
        "topology.threads=1",
        *(f"optimizer.{name}_learning_rate={rate}" for name, rate in rates.items()),
        *(f"distillation.{name}={value}" for name, value in distilled.items()),
        *task.overrides,
    ]
    config = load_config(task.config, overrides)
    if task.num_train_rows is not None:
        assert isinstance(config.data.train, str)
        data = folder / task.name / "data"
        part = first_rows(Path(config.data.train), task.num_train_rows, data)
        config = config.model_copy(
            update={"data": config.data.model_copy(update={"train": str(part)})}
        )
    return config


def first_rows(file: Path, count: int, folder: Path) -> Path:
    """A file with the first `count` rows of a JSON Lines file."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{file.stem}-{count}.jsonl"
    rows = file.read_text(encoding="utf-8").splitlines(keepends=True)[:count]
    aside = part.with_suffix(f".{os.getpid()}")  # other runs may write the same at the same time
    aside.write_text("".join(rows), encoding="utf-8")
    aside.replace(part)
    return part


def make_learner(
    config: Config, prepared: Prepared, key: RunKey, teacher_folder: Path | None
) -> Learner:
    """What a run trains."""
    match key.method:
        case "teacher":
            return Trained(resolve(alone(config, Stage.TEACHER)), prepared)
        case "small":
            return Trained(resolve(alone(config, Stage.STUDENT)), prepared)
        case "distilled":
            assert teacher_folder is not None
            return Distilled(config, prepared, teacher_folder)
        case "ours":
            return Trained(resolve(config), prepared)


def train(
    config: Config, key: RunKey, settings: str, weights: Path, teacher_folder: Path | None
) -> RunResult:
    """Train, then predict validation and test with the last epoch's weights.

    They are not the best of all epochs on validation: the rate falls to zero, and on validation
    splits of a hundred sentences the best of many epochs is chiefly the luckiest.

    Args:
        weights: folder that a teacher's weights are left in.
    """
    blueprint = resolve(config)
    prepared = prepare_data(blueprint)
    learner = make_learner(config, prepared, key, teacher_folder)
    num_steps = num_training_steps(blueprint, batch_plan(blueprint, prepared.splits["train"]))
    started_s = time.process_time()
    learner.train(0, num_steps)
    train_s = time.process_time() - started_s
    if isinstance(learner, Trained) and key.method == "teacher":
        weights.mkdir(parents=True, exist_ok=True)
        learner.keep(weights)
    validation = learner.evaluate("validation")  # before test: the weight of `joint` is chosen
    return RunResult(
        key=key,
        settings=settings,
        main_metric=make_task(blueprint.task.name, prepared.labels, blueprint.task).main_metric,
        validation=validation,
        test=learner.evaluate("test"),
        steps=num_steps,
        parameters=learner.num_parameters,
        train_s=train_s,
    )


def run(folder: Path, key: RunKey, tasks: Sequence[StudyTask] = TASKS) -> RunResult:
    """Do one run of a study and write its result; only teachers' weights stay."""
    task = next(task for task in tasks if task.name == key.task)
    teacher_folder = weights_folder(folder, key.teacher) if key.method == "distilled" else None
    weights = weights_folder(folder, key)
    result_file(folder, key).parent.mkdir(parents=True, exist_ok=True)
    config, settings = run_config(task, folder, key), task.digest(key.method)
    result = train(config, key, settings, weights, teacher_folder)
    text = result.model_dump_json(indent=2) + "\n"
    write_atomically(result_file(folder, key), text)
    return result


def weights_folder(folder: Path, key: RunKey) -> Path:
    """Folder of a teacher's weights."""
    return folder / f"{key.name}.weights"


def main(
    key: Annotated[str, typer.Argument(help="The run, as the JSON of a RunKey.")],
    folder: Annotated[Path, typer.Option(help="Folder of the study's runs.")],
) -> None:
    """Do one run of the study."""
    result = run(folder, RunKey.model_validate_json(key))
    print(result.model_dump_json())


if __name__ == "__main__":
    typer.run(main)
