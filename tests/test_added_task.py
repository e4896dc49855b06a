"""A task that tsarch doesn't have, added in one file (`added_task.py`) and one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.added_task import register
from tests.equal_losses import check_equal_losses
from tests.helpers import read_task, tiny_config, tiny_raw, write_jsonl
from tests.suites.crews import Crews
from tsarch.config import MODES, Config, DataConfig
from tsarch.config_loading import config_schema, parse_config
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.rank.process import RankProcess
from tsarch.run.saved_run import evaluate_run
from tsarch.task_names import TASKS

ANIMALS, THINGS = ("cat", "dog", "horse", "bird"), ("stone", "chair", "river", "paper", "door")
RATES = ("teacher", "student", "embedding")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "added_choice", "tests.added_task")


def rows(num_rows: int) -> list[dict[str, Any]]:
    """Which of three is an animal?"""
    made = []
    for number in range(num_rows):
        choices = [THINGS[number % 5], THINGS[(number + 2) % 5]]
        choices.insert(number % 3, ANIMALS[number % 4])
        question = "which of these lives ?"
        made.append({"question": question, "choices": choices, "answer": number % 3})
    return made


def choice_config(tmp_path: Path, **sections: Any) -> Config:
    file = str(write_jsonl(tmp_path / "choices.jsonl", rows(60)))
    return tiny_config(
        tmp_path,
        task={"name": "added_choice"},
        data={**dict.fromkeys(("train", "validation", "test"), file), "batch_tokens": 96},
        **sections,
    )


class ProcessThatKnowsTheTask(RankProcess):
    """The process of a rank in which the line in `tsarch/task_names.py` stands."""

    def __init__(self, *arguments: Any) -> None:
        register()
        super().__init__(*arguments)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.replicas(1, 1, spoils=True)
def test_ranks_give_the_losses_of_one_process(tmp_path: Path, crews: Crews) -> None:
    crews.close()
    crews.get(tiny_config(tmp_path, topology={"runner": "processes"}), ProcessThatKnowsTheTask)
    check_equal_losses(choice_config(tmp_path), (1, 1), crews)


@pytest.mark.slow
def test_a_new_task_trains_and_evaluates_like_any_other(tmp_path: Path) -> None:
    config = choice_config(
        tmp_path,
        schedule={"epochs": 10},
        optimizer=dict.fromkeys((f"{n}_learning_rate" for n in RATES), 2e-3),
        topology={"runner": "local", "threads": 1},
    )
    summary = run_training(config)
    assert summary["after"]["teacher"]["accuracy"] > max(
        0.8, summary["before"]["teacher"]["accuracy"]
    )
    again = evaluate_run(tmp_path / "run", "test").evaluation
    for mode in MODES:
        assert again.metrics[mode] == pytest.approx(summary["after"][mode], abs=1e-9)


def test_its_columns_are_checked_and_may_have_other_names(tmp_path: Path) -> None:
    renamed = [{"q": row["question"], **row} for row in rows(6)]
    file = str(write_jsonl(tmp_path / "choices.jsonl", renamed))
    files = dict.fromkeys(("train", "validation", "test"), file)
    raw = tiny_raw(tmp_path, task={"name": "added_choice"}, data=files)
    raw["data"]["columns"] = {"question": "q"}
    config = parse_config(raw, "c.yaml")
    assert config.data.columns == {"question": "q", "choices": "choices", "answer": "answer"}
    assert len(read_task("added_choice", config.data).rows["test"]) == 6
    raw["data"]["columns"] = {"tokens": "t", "choice": "c"}
    with pytest.raises(UserError) as caught:
        parse_config(raw, "c.yaml")
    assert [str(own) for own in caught.value.mistakes] == [
        "c.yaml: data.columns.tokens: is a column of `ner` and `relation`, not of "
        "`added_choice`. Columns of `added_choice`: question, choices, answer.",
        "c.yaml: data.columns.choice: is not a key. Did you mean `data.columns.choices`?",
    ]
    assert "AddedColumns" in config_schema()


def test_its_mistakes_name_their_line(tmp_path: Path) -> None:
    file = str(write_jsonl(tmp_path / "choices.jsonl", [*rows(1), {**rows(1)[0], "answer": 3}]))
    with pytest.raises(
        UserError, match=r"choices.jsonl:2: `answer` is 3, not one of the 3 choices"
    ):
        read_task("added_choice", DataConfig(train=file, validation=file, test=file))
