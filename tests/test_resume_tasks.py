"""Every task goes on amid an epoch as if it had never been ended, in every schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.generative_configs import generative_config
from tests.helpers import tiny_config
from tests.test_classification_and_relation import tiny_task
from tests.test_qa import tiny_qa
from tests.test_read_once import tiny_documents, tiny_read_once, tiny_split
from tests.test_resume import amid_an_epoch, check_resumption
from tsarch.config import Config

SCHEDULES = ("sequential", "overlapped", "joint")


def config_of(folder: Path, task: str, schedule: str) -> Config:
    """A few steps of a task, dropout on."""
    sections: dict[str, Any] = {
        **amid_an_epoch(schedule, folder),
        "decoding": {"max_texts": 1},
        "teacher": {"dropout": 0.1},
        "student": {"dropout": 0.1},
    }
    match task:
        case "ner":
            return tiny_config(folder, **sections)
        case "qa":
            return tiny_qa(folder, **sections)
        case "qa-read-once":
            return tiny_read_once(folder, **sections)
        case "qa-split":
            return tiny_split(folder, **sections)
        case "relation-read-once":
            return tiny_documents(folder, **sections)
        case "classification" | "relation" | "ranking":
            return tiny_task(folder, task, **sections)
    return generative_config(folder, task, "t5" if task == "translation" else "llama", **sections)


TASKS = (
    *("ner", "classification", "relation", "ranking", "qa"),
    *("qa-read-once", "qa-split", "relation-read-once"),
    *("translation", "summarization", "dialogue"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "schedule"),
    [
        # One schedule each, so that each task and each schedule is there; all in the thorough ones.
        (task, schedule)
        if number % len(SCHEDULES) == place
        else pytest.param(task, schedule, marks=pytest.mark.thorough)
        for number, task in enumerate(TASKS)
        for place, schedule in enumerate(SCHEDULES)
    ],
)
def test_a_task_goes_on_amid_an_epoch(tmp_path, task, schedule):
    check_resumption(config_of(tmp_path, task, schedule), tmp_path)
