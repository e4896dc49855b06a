"""Scores that say something: nothing to learn, splits that can't tell, what can't be reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.generative_configs import generative_raw
from tests.helpers import QUICKSTART_MODEL, packing_spec, read_task, tiny_config, write_jsonl
from tsarch.blueprint import resolve
from tsarch.config import DataConfig
from tsarch.config_loading import parse_config
from tsarch.data.corpus import read_rows
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.tokenizer import load_tokenizer
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.prepare import Prepared, prepare_data
from tsarch.records import TokenizedSplit
from tsarch.run.self_score import can_tell, self_score_notes, text_signatures, with_notes
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
    (said,) = self_score_notes(own, {"train": full, "validation": poor})
    assert said == f"the validation split {note}{'' if tells else '; the last weights are kept'}"
    assert self_score_notes(own, {"validation": poor}) == [f"the validation split {note}"]


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


def test_answers_that_no_tokens_are_limit_what_can_be_reached(tmp_path):
    """`sing` is a part of the token `sings`; `Rome` is a token."""
    own = make_task("qa", tuple(NAMES["qa"]))
    rows = [asked(1, "Rome"), asked(2, "sing"), asked(3), asked(4, "Ann")]
    (note,) = self_score_notes(own, {"validation": packed("qa", rows, NAMES["qa"])})
    assert note == (
        "validation: at most exact_match 0.7500, f1 0.7500 can be reached: 1 of 4 rows (input:row "
        "2) can't be answered as they are labelled (cut, too long, or not whole tokens)"
    )
    sound = packed("qa", [asked(1, "Rome"), asked(2)], NAMES["qa"])
    assert self_score_notes(own, {"train": sound, "validation": sound, "test": sound}) == []


@pytest.mark.parametrize("task", NAMES)
def test_what_is_right_everywhere_gets_full_marks(task):
    own = make_task(task, row_reader(task, DataConfig()).labels(NAMES[task]))
    split = packed(task, SOMETHING[task], NAMES[task])
    scores = own.metrics(split, own.perfect(split))
    assert {name: scores[name] for name in own.full_marks} == own.full_marks
    assert own.missed(split, own.perfect(split)) == []


def prepared_texts(folder: Path, task: str, targets: list[str], max_tokens: int = 24) -> Prepared:
    """Sources with these targets in all splits, and what is said of them."""
    source, target = ("document", "summary") if task == "summarization" else ("source", "target")
    made = [{source: "the old river", target: text} for text in targets]
    path = str(write_jsonl(folder / "mine.jsonl", made))
    data = {"train": path, "validation": path, "test": path}
    raw = generative_raw(folder, task, "llama", data=data)
    raw["task"]["max_target_tokens"] = max_tokens
    blueprint = resolve(parse_config(raw, "tiny"))
    return with_notes(blueprint, prepare_data(blueprint))


def test_texts_that_get_less_than_full_marks_against_themselves_are_named(tmp_path):
    prepared = prepared_texts(tmp_path, "summarization", ["red tree", "river", "!", "a new bird"])
    assert prepared.notes[0] == (
        "train: at most rouge1 0.7500, rouge2 0.5000, rougeL 0.7500 can be reached: 2 of 4 rows "
        f"({tmp_path}/mine.jsonl:2, 3) are too short for it, or have no word"
    )
    assert [note.partition(":")[0] for note in prepared.notes] == [
        *("train", "validation", "test", "test")
    ]


def test_targets_that_are_cut_limit_what_can_be_reached(tmp_path):
    targets = ["a red bird", "a green house by the old river and a blue tree"]
    prepared = prepared_texts(tmp_path, "translation", targets, max_tokens=12)
    (note,) = (note for note in prepared.notes if note.startswith("train: at most bleu "))
    assert note.endswith(
        f"can be reached: 1 of 2 rows ({tmp_path}/mine.jsonl:2) are cut (task.max_target_tokens) "
        "or not spelled by the tokenizer as they are"
    )


def test_how_texts_are_measured_is_told_and_kept(tmp_path):
    prepared = prepared_texts(tmp_path, "translation", ["a red bird", "เรือเก่า"], 30)
    (note,) = prepared.notes
    task = make_task("translation", ())
    signatures = text_signatures(task, prepared.splits["test"], 200)
    assert "|tok:char|" in signatures["bleu"]
    assert note == f"test: bleu by {signatures['bleu']}, chrf by {signatures['chrf']}"
    assert text_signatures(make_task("ner", ("O",)), prepared.splits["test"], 200) == {}
