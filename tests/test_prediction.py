"""What was trained, used: `tsarch.load(RUN).predict(…)`."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import tsarch
from tests.test_pair import run_of
from tsarch.config import LossConfig
from tsarch.data.plain_text import sentence_bounds, word_bounds
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.prediction.trained_pair import TextEntity
from tsarch.tasks.answers import Label, Relation

TEXT = 'Ada Lovelace met Mr. Babbage in London.  They "talked"! Then? Nothing …\nP.S. 羅馬。On.'


@pytest.fixture(scope="module")
def ner_run(tmp_path_factory) -> Path:
    """A short run whose best weights tag something."""
    folder = tmp_path_factory.mktemp("ner")
    config = run_of(folder, "ner")
    loss = LossConfig(label_weights="balanced")
    longer = config.schedule.model_copy(update={"max_steps": 12})
    run_training(config.model_copy(update={"loss": loss, "schedule": longer}))
    return folder / "run"


def test_sentences_and_words_of_a_text():
    sentences = [TEXT[start:stop] for start, stop in sentence_bounds(TEXT)]
    assert sentences == [
        "Ada Lovelace met Mr. Babbage in London.",
        'They "talked"!',
        "Then?",
        "Nothing …",
        "P.S. 羅馬。",
        "On.",
    ]
    words = [TEXT[start:stop] for start, stop in word_bounds(TEXT)]
    assert words[:6] == ["Ada", "Lovelace", "met", "Mr", ".", "Babbage"]
    assert words[-6:] == [".", "羅", "馬", "。", "On", "."]


@pytest.mark.parametrize("mode", ["teacher", "student", "joint", "student_alone"])
def test_rows_are_answered_as_the_run_evaluates_them(ner_run, mode):
    """Tags of the test split, put together from predictions, have the run's own metrics."""
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    pair = tsarch.load(ner_run, device="cpu")
    rows = [json.loads(line) for line in (ner_run.parent / "test.jsonl").open()]
    guess = []
    for row, entities in zip(rows, pair.predict(rows, mode), strict=True):
        tags = ["O"] * len(row["tokens"])
        for entity in entities:
            tags[entity.first : entity.stop] = [f"I-{entity.type}"] * (entity.stop - entity.first)
            tags[entity.first] = f"B-{entity.type}"
        guess.append(tags)
    found = precision_recall_fscore_support(
        [row["tags"] for row in rows], guess, average="micro", scheme=IOB2, zero_division=0
    )
    assert any("B" in "".join(tags) for tags in guess)
    after = json.loads((ner_run / "summary.json").read_text())["after"][mode]
    assert found[:3] == pytest.approx([after["precision"], after["recall"], after["f1"]])


def test_entities_of_a_text_say_where_they_stand(ner_run):
    text = "Yesterday Maria Rossi flew\nfrom Rome to Paris with Air France ! " * 30
    pair = tsarch.load(ner_run, device="cpu")
    (found,) = pair.predict([text])
    assert found, "this model should tag something"
    for entity in found:
        assert isinstance(entity, TextEntity)
        assert text[entity.start : entity.end] == entity.text
        assert 0 <= entity.score <= 1
    assert max(entity.end for entity in found) > len(text) / 2, "the end is read too"
    assert [e.start for e in found] == sorted(e.start for e in found)


def test_a_text_is_its_sentences_as_words(ner_run):
    pair = tsarch.load(ner_run, device="cpu")
    text = "Maria Rossi flew to Paris. John stayed."
    rows = [
        {"tokens": [text[a:b] for a, b in word_bounds(text[s:e]) + s], "doc_id": "x"}
        for s, e in sentence_bounds(text)
    ]
    (whole,) = pair.predict([text])
    parts = pair.predict(rows)
    assert [e.score for e in whole] == [e.score for own in parts for e in own]


def test_inputs_keep_their_order_and_do_not_see_each_other(ner_run):
    pair = tsarch.load(ner_run, device="cpu")
    inputs = ["Rome is far .", ["Maria", "Rossi"], "Paris is near . Maria Rossi agrees .", ["a"]]
    together = pair.predict(inputs)
    for own, found in zip(inputs, together, strict=True):
        (alone,) = pair.predict([own])
        same = [[replace(entity, score=0) for entity in answers] for answers in (alone, found)]
        assert same[0] == same[1]
        assert [e.score for e in alone] == pytest.approx([e.score for e in found], abs=1e-5)


def test_threads_share_a_pair(ner_run):
    pair = tsarch.load(ner_run, device="cpu")
    texts = [f"Maria Rossi flew to Paris {n} times ." for n in range(8)]
    expected = [pair.predict([text]) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda text: pair.predict([text]), texts * 3)) == expected * 3


def test_every_wrong_input_is_named(ner_run):
    pair = tsarch.load(ner_run, device="cpu")
    with pytest.raises(UserError) as caught:
        pair.predict(["fine", " ", 3, ["a", 1]])
    assert [m.where for m in caught.value.mistakes] == ["input 2", "input 3", "input 4"]
    with pytest.raises(UserError, match="Give a list"):
        pair.predict("one text")
    with pytest.raises(UserError, match="It has teacher, student, joint, student_alone"):
        pair.predict(["a"], mode="both")
    assert pair.predict([]) == []


def test_nothing_is_cut_in_silence(ner_run):
    pair = tsarch.load(ner_run, device="cpu")
    with pytest.raises(UserError, match=r"tokens don't fit, so they would not be read"):
        pair.predict([["zq" * 45]])


@pytest.mark.parametrize(("task", "kind"), [("classification", Label), ("relation", Relation)])
def test_other_tasks_give_one_answer_an_input(tmp_path, task, kind):
    run_training(run_of(tmp_path, task))
    pair = tsarch.load(tmp_path / "run", device="cpu")
    if task == "relation":
        row = {"tokens": ["Rome", "lies", "in", "Italy"], "head": [0, 1], "tail": [3, 4]}
        with pytest.raises(UserError, match="Give rows with the columns tokens, head, tail"):
            pair.predict(["Rome lies in Italy"])
        (found,) = pair.predict([row])
        assert (found.head, found.tail) == ("Rome", "Italy")
    else:
        (found,) = pair.predict(["A fine day ."])
    assert isinstance(found, kind)
    assert sum(found.scores.values()) == pytest.approx(1, abs=1e-5)
    assert found.name in pair.labels


def test_answers_to_questions_need_no_ids(tmp_path):
    run_training(run_of(tmp_path, "qa"))
    pair = tsarch.load(tmp_path / "run", device="cpu")
    passage = "Ada lives in Turin . " * 60
    rows = [{"context": passage, "question": q} for q in ("Where does Ada live ?", "Who ?")]
    found = pair.predict(rows)
    assert len(found) == 2
    assert all(type(own).__name__ in ("SpanAnswer", "NoAnswer") for own in found)
