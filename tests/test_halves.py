"""A pair whose halves are in different processes answers as one that is whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.test_pair import answering, run_of
from tsarch.launch.training import run_training
from tsarch.pair.answering import Answering
from tsarch.prediction.loading import load_halves
from tsarch.run.saved_run import open_run, saved_pair
from tsarch.tasks.registry import make_task
from tsarch.topology import Reads


def half(folder: Any, reads: Reads) -> Answering:
    blueprint, task_file = open_run(folder)
    task: Any = make_task(task_file.task, task_file.labels)
    return Answering(
        saved_pair(folder, halves=[reads]),
        task,
        blueprint.window_tokens,
        blueprint.evaluation.windows,
        task_file.joint_weight,
        batch_tokens=200,
        halves=[stage.reads for stage in blueprint.stages],
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ner", "classification", "relation", "qa"])
def test_the_student_answers_with_states_of_a_teacher_elsewhere(tmp_path, task):
    config = run_of(tmp_path, task)
    run_training(config)
    whole, prepared = answering(config, tmp_path / "run")
    split = prepared.splits["test"]
    teacher, student = half(tmp_path / "run", "contexts"), half(tmp_path / "run", "windows")
    states = teacher.states(split)
    np.testing.assert_allclose(
        teacher.scores(split, "teacher"), whole.scores(split, "teacher"), atol=1e-6
    )
    for mode in ("student", "joint", "student_alone"):
        given = states if student.reads_contexts(mode) else None
        found = student.scores(split, mode, given)
        np.testing.assert_allclose(found, whole.scores(split, mode), atol=1e-6, err_msg=mode)
    assert student.reads_contexts("student_alone") == (task == "qa")


@pytest.mark.slow
def test_inputs_are_prepared_without_models_and_never_answered(tmp_path):
    run_training(run_of(tmp_path, "ner"))
    pair = load_halves(tmp_path / "run", ())
    assert pair.modes == ("teacher", "student", "joint", "student_alone")
    with pytest.raises(AssertionError, match="without its models"):
        pair.predict(["Rome is far ."])
