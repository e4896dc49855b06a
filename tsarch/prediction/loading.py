"""Loads the pair of a finished run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from tsarch.errors import UserError
from tsarch.pair.answering import Answering
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.prepare import packing_spec
from tsarch.run.saved_run import open_run, saved_pair
from tsarch.tasks.base import AnsweringTask
from tsarch.tasks.registry import make_task, row_reader

Precision = Literal["fp32", "bf16"]


def load(
    run: str | os.PathLike[str],
    device: str = "auto",
    precision: Precision = "fp32",
    batch_tokens: int = 4096,
) -> TrainedPair:
    """The pair of a run's best weights, from its folder alone.

    Args:
        run: the run's folder.
        device: `auto` (a GPU if there is one), `cpu` or `cuda`.
        precision: of the arithmetic.
        batch_tokens: padded tokens that are read at a time.

    Raises:
        UserError: the folder is not a complete run, or its files are damaged.
    """
    folder = Path(run)
    blueprint, task_file = open_run(folder)
    task = make_task(task_file.task, task_file.labels)
    if not isinstance(task, AnsweringTask):
        raise UserError.single(str(folder), f"is for {task_file.task}, which can't be loaded yet.")
    answering = Answering(
        saved_pair(folder, device, precision),
        task,
        blueprint.window_tokens,
        blueprint.evaluation.windows,
        task_file.joint_weight,
        batch_tokens,
    )
    reader = row_reader(task_file.task, blueprint.data, labelled=False)
    spec = packing_spec(blueprint, keep_tokens=False)
    layout = reader.layout(spec, task_file.labels)
    return TrainedPair(
        task_file.task, task_file.labels, blueprint.modes, reader, layout, answering, folder
    )
