"""Which label of a relation set means that there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers import QUICKSTART_MODEL, tiny_blueprint, write_jsonl
from tsarch.config import TaskConfig
from tsarch.config_loading import config_schema, parse_config
from tsarch.errors import UserError
from tsarch.prepare import prepare_data
from tsarch.tasks.no_relation import no_relation
from tsarch.tasks.registry import make_task


def related(number: int, relation: str) -> dict[str, Any]:
    tokens = ["the", "salt", "cures", "him", str(number)]
    return {"tokens": tokens, "head": [1, 2], "tail": [3, 4], "relation": relation}


@pytest.mark.parametrize(
    "name",
    [
        *("NA", "no_relation", "Other", "O", "false", "None", "no relation", "NULL", "Negative"),
        *("0", "DDI-false", "N/A", "No-Relation", "False", "nil"),
    ],
)
def test_usual_names_are_found_in_whatever_case(name):
    assert no_relation(sorted(["cures", name, "causes"]), "auto") == name


def test_a_label_can_be_named_and_none_need_be():
    labels = ("causes", "false", "nix")
    assert no_relation(labels, "nix") == "nix"
    assert no_relation(labels, "NIX") == "nix"
    assert no_relation(labels, None) is None
    assert no_relation(("causes", "cures"), "auto") is None
    assert no_relation(("auto", "none"), "auto") == "auto", "a label of that name"


def test_a_name_that_is_no_label_and_two_usual_names_are_refused():
    with pytest.raises(UserError) as caught:
        no_relation(("causes", "cures"), "none")
    assert str(caught.value) == (
        "task.no_relation: `none` is not a label of the training split. Labels: causes, cures."
    )
    with pytest.raises(UserError, match="`NA` and `other` are labels that may mean no relation"):
        no_relation(("NA", "causes", "other"), "auto")
    assert no_relation(("NA", "causes", "other"), "NA") == "NA"


def test_yaml_that_reads_a_label_as_something_else_is_understood():
    for value, label in ((False, "false"), (0, "0"), ("None", "None"), (None, None)):
        assert TaskConfig(no_relation=value).no_relation == label
    raw = {"data": {"train": "a", "validation": "a", "test": "a"}, "teacher": {"model": "m"}}
    config = parse_config({**raw, "task": {"name": "relation", "no_relation": False}}, "tiny")
    assert config.task.no_relation == "false"
    assert '"no_relation"' in config_schema()


@pytest.mark.parametrize("name", ["false", "Other", "DDI-false"])
def test_a_model_that_always_says_there_is_none_has_no_f1(tmp_path, name):
    rows = [related(n, name if n < 5 else "cures") for n in range(8)]
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    blueprint = tiny_blueprint(
        tmp_path,
        data={"train": path, "validation": path, "test": path, "tokenizer": QUICKSTART_MODEL},
        task={"name": "relation"},
    )
    prepared = prepare_data(blueprint)
    told = f"label `{name}` counts as no relation (by its name; task.no_relation)"
    assert told in prepared.notes
    split = prepared.splits["test"]
    task = make_task("relation", prepared.labels, blueprint.task)
    always = np.full(split.num_words, prepared.labels.index(name))
    assert task.metrics(split, always)["f1_micro"] == 0.0
    assert task.metrics(split, split.labels)["f1_micro"] == 1.0
    every = make_task("relation", prepared.labels, TaskConfig(name="relation", no_relation=None))
    assert every.metrics(split, always)["f1_micro"] == pytest.approx(5 / 8)
    assert every.choices[0].startswith("every label counts as a relation")
