"""Loads the pair of a finished run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from tsarch.blueprint import Blueprint
from tsarch.data.tokenizer import end_token
from tsarch.model_folder import TaskFile
from tsarch.pair.answering import Answering
from tsarch.pair.pair import Pair
from tsarch.pair.writing import Writing
from tsarch.prediction.answers import Answers, WritingAnswers
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.prepare import packing_spec
from tsarch.rank.generation_spec import decoding_spec
from tsarch.run.saved_run import open_run, saved_pair
from tsarch.run.versions import current_folder
from tsarch.tasks.base import AnsweringTask, GenerativeTask
from tsarch.tasks.registry import make_task, row_reader

Precision = Literal["fp32", "bf16"]


def load(
    run: str | os.PathLike[str],
    device: str = "auto",
    precision: Precision = "fp32",
    batch_tokens: int = 4096,
) -> TrainedPair:
    """The pair of a run's best weights, of its current version, from its folder alone.

    Args:
        run: the run's folder.
        device: `auto` (a GPU if there is one), `cpu` or `cuda`.
        precision: of the arithmetic.
        batch_tokens: padded tokens that are read at a time.

    Raises:
        UserError: the folder is not a complete run, or its files are damaged.
    """
    folder = current_folder(Path(run))
    blueprint, task_file = open_run(folder)
    pair = saved_pair(folder, device, precision)
    reader = row_reader(task_file.task, blueprint.data, labelled=False)
    layout = reader.layout(packing_spec(blueprint, keep_tokens=False), task_file.labels)
    answering = _answering(blueprint, task_file, pair, batch_tokens)
    return TrainedPair(
        task_file.task, task_file.labels, blueprint.modes, reader, layout, answering, folder
    )


def _answering(blueprint: Blueprint, task_file: TaskFile, pair: Pair, batch_tokens: int) -> Answers:
    """What makes answers of a split, as the task's are."""
    task = make_task(task_file.task, task_file.labels)
    weight, window_tokens = task_file.joint_weight, blueprint.window_tokens
    if isinstance(task, GenerativeTask):
        tokenizer, own = blueprint.tokenizer(), blueprint.decoding
        decoding = decoding_spec(blueprint, end_token(tokenizer))
        writing = Writing(
            pair, decoding, window_tokens, own.cache, weight, own.batch, blueprint.seed
        )
        return WritingAnswers(writing, task, tokenizer)
    assert isinstance(task, AnsweringTask)
    num_windows = blueprint.evaluation.windows
    return Answering(pair, task, window_tokens, num_windows, weight, batch_tokens)
