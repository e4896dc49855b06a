"""Scores that say something: nothing to learn, splits that can't tell, what can't be reached."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers import QUICKSTART_MODEL, packing_spec, read_task, tiny_config, write_jsonl
from tsarch.config import DataConfig
from tsarch.data.corpus import read_rows
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.tokenizer import load_tokenizer
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.records import TokenizedSplit
from tsarch.run.self_score import can_tell, self_score_notes
from tsarch.tasks.registry import make_task, row_reader


def tagged(*tags: str) -> dict[str, Any]:
    return {"tokens": ["Ann", "sings", "in", "Rome"][: len(tags)], "tags": list(tags)}


def labelled(label: str) -> dict[str, Any]:
    return {"text": f"this is {label}", "label": label}


def related(relation: str) -> dict[str, Any]:
    tokens = ["Ann", "sings", "in", "Rome"]
    return {"tokens": tokens, "head": [0, 1], "tail": [3, 4], "relation": relation}


def asked(number: int, *answers: str) -> dict[str, Any]:
    text = "Ann sings in Rome."
    starts = [text.index(answer) for answer in answers]
    own = {"text": list(answers), "answer_start": starts}
    return {"id": f"q{number}", "context": text, "question": "Where?", "answers": own}


NOTHING: dict[str, tuple[list[dict[str, Any]], str]] = {
    "ner": ([tagged("O", "O"), tagged("O")], "has no entity"),
    "classification": ([labelled("good"), labelled("good")], "has one label only, `good`"),
    "relation": ([related("born"), related("born")], "has one relation only, `born`"),
    "qa": ([asked(1), asked(2)], "has no answer"),
}
SOMETHING: dict[str, list[dict[str, Any]]] = {
    "ner": [tagged("B-PER", "O", "O", "B-LOC"), tagged("O", "O")],
    "classification": [labelled("good"), labelled("bad")],
    "relation": [related("born"), related("Other")],
    "qa": [asked(1, "Rome"), asked(2)],
}


@pytest.mark.parametrize("task", NOTHING)
def test_a_train_split_with_nothing_to_learn_is_one_mistake(tmp_path, task):
    rows, what = NOTHING[task]
    train = str(write_jsonl(tmp_path / "train.jsonl", rows))
    good = str(write_jsonl(tmp_path / "good.jsonl", SOMETHING[task]))
    for other in (train, good):
        with pytest.raises(UserError) as caught:
            read_task(task, DataConfig(train=train, validation=other, test=other))
        (mistake,) = caught.value.mistakes
        assert mistake.where == f"data.train: {train}"
        assert mistake.what == f"{what}: there is nothing to learn."
    read_task(task, DataConfig(train=good, validation=good, test=good))


def test_other_mistakes_are_told_beside_it(tmp_path):
    rows, _ = NOTHING["ner"]
    train = str(write_jsonl(tmp_path / "train.jsonl", rows))
    broken = tmp_path / "broken.jsonl"
    broken.write_text("oops\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_task("ner", DataConfig(train=train, validation=str(broken), test=train))
    assert len(caught.value.mistakes) == 2


def packed(task: str, rows: list[dict[str, Any]], names: list[str]) -> TokenizedSplit:
    """Rows as a split, with labels of these names."""
    reader = row_reader(task, DataConfig())
    tokens = RowTokenizer(load_tokenizer(QUICKSTART_MODEL), None, keep=False)
    layout = reader.layout(packing_spec(tokens, 64, 40), reader.labels(names))
    return layout.pack(read_rows(rows, reader))


NAMES = {
    "ner": ["LOC", "PER"],
    "classification": ["bad", "good"],
    "relation": ["Other", "born"],
    "qa": ["answer", "no_answer"],
}


@pytest.mark.parametrize(
    ("task", "rows", "note"),
    [
        ("ner", NOTHING["ner"][0], "has no entity: f1 is 0 there, whatever is predicted"),
        ("classification", NOTHING["classification"][0], "has one label only, `good`"),
        ("relation", NOTHING["relation"][0], "has one relation only, `born`"),
        (
            "relation",
            [related("Other"), related("Other")],
            "has one relation only, `Other`: f1_micro is 0 there, whatever is predicted",
        ),
        ("qa", NOTHING["qa"][0], "has no answer"),
    ],
)
def test_evaluated_splits_that_say_little_are_named(task, rows, note):
    own = make_task(task, row_reader(task, DataConfig()).labels(NAMES[task]))
    full, poor = packed(task, SOMETHING[task], NAMES[task]), packed(task, rows, NAMES[task])
    tells = "whatever" not in note
    assert can_tell(own, full)
    assert can_tell(own, poor) is tells
    assert self_score_notes(own, {"validation": full, "test": poor}) == [f"the test split {note}"]
    (said,) = self_score_notes(own, {"validation": poor, "test": full})
    assert said == f"the validation split {note}{'' if tells else '; the last weights are kept'}"


def test_a_run_whose_validation_cannot_tell_keeps_its_last_weights(tmp_path, capsys):
    sound = [{**tagged("B-PER", "O", "O", "B-LOC"), "doc_id": f"d{n}"} for n in range(4)]
    empty = [{**tagged("O", "O", "O", "O"), "doc_id": f"d{n}"} for n in range(4)]
    train = str(write_jsonl(tmp_path / "sound.jsonl", sound))
    validation = str(write_jsonl(tmp_path / "empty.jsonl", empty))
    config = tiny_config(
        tmp_path,
        data={"train": train, "validation": validation, "test": train},
        schedule={"epochs": 3},
        evaluation={"patience": 1},
        topology={"runner": "local"},
    )
    summary = run_training(config)
    said = " ".join(capsys.readouterr().out.split())
    assert (summary["best_epoch"], summary["selected_by"]) == (3, None)
    assert said.count("(the validation split can't tell: kept)") == 3
    note = "the validation split has no entity: f1 is 0 there, whatever is predicted"
    assert f"note: {note}" in said
    assert summary["notes"] == [
        "label PER is not in the validation split",
        "label LOC is not in the validation split",
        f"{note}; the last weights are kept",
    ]
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "the last: the validation split" in " ".join(report.split())
