"""What was trained, used: `tsarch.load(RUN).predict(…)`."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import pytest

import tsarch
from tests.generative_configs import generative_raw
from tests.test_pair import run_of
from tsarch.config_loading import parse_config
from tsarch.data.plain_text import sentence_bounds, word_bounds
from tsarch.errors import UserError
from tsarch.inputs.rows import TextEntity
from tsarch.launch.training import run_training
from tsarch.pair import answering
from tsarch.pair.pair import Pair
from tsarch.prepare import prepare_split
from tsarch.rank.api import RankApi
from tsarch.rank.local_crew import LocalCrew
from tsarch.run.saved_run import open_run
from tsarch.tasks.answers import Label, Relation
from tsarch.tasks.base import is_writing
from tsarch.tasks.registry import make_task

TEXT = 'Ada Lovelace met Mr. Babbage in London.  They "talked"! Then? Nothing …\nP.S. 羅馬。On.'


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
    """Tags of the test split, put together from predictions, have the run's own metrics, where long
    sentences are cut as they were for the run."""
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    pair = tsarch.load(ner_run, device="cpu", overlap=False)
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
    with pytest.raises(UserError, match=r"input 2: can't be read whole: ends of words"):
        pair.predict(["Rome .", ["zq" * 45]])


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


def test_answers_to_questions_need_no_ids(tmp_path, monkeypatch):
    run_training(run_of(tmp_path, "qa"))
    pair = tsarch.load(tmp_path / "run", device="cpu")
    passage = "Ada lives in Turin . " * 60
    rows = [{"context": passage, "question": q} for q in ("Where does Ada live ?", "Who ?")]
    found = pair.predict(rows)
    assert len(found) == 2
    assert all(type(own).__name__ in ("SpanAnswer", "NoAnswer") for own in found)
    encode, read = Pair.encode, []
    monkeypatch.setattr(
        Pair, "encode", lambda *given, **named: [read.append(1), encode(*given, **named)][1]
    )
    pair.predict(rows, "teacher")
    once = len(read)
    for mode in ("student", "joint"):
        answers = []
        for kept_bytes, times in ((1 << 30, 1), (0, 2)):
            monkeypatch.setattr(answering, "_KEPT_BYTES", kept_bytes)
            read.clear()
            answers.append(pair.predict(rows, mode))
            assert len(read) == times * once
        assert answers[0] == answers[1]


DOCUMENT = "Maria Rossi flew to Rome. John Smith stayed in Paris. Nobody saw Air France. " * 12


@pytest.mark.parametrize("mode", ["student", "joint", "teacher"])
def test_a_context_is_read_once_and_answers_as_the_document_does(ner_run, monkeypatch, mode):
    pair = tsarch.load(ner_run, device="cpu")
    (expected,) = pair.predict([DOCUMENT], mode)
    context = pair.read(DOCUMENT)
    monkeypatch.setattr(Pair, "encode", None)  # the teacher has read
    assert context.predict(mode=mode) == expected
    by_sentence = [context.predict(n, mode) for n in range(context.num_sentences)]
    if mode != "teacher":  # which has no windows
        assert [e for own in by_sentence for e in own] == list(expected)
    assert context.num_sentences == 36
    assert context.num_bytes > 0


def test_a_window_of_a_context_is_any_part_of_its_text(ner_run):
    context = tsarch.load(ner_run, device="cpu").read(DOCUMENT)
    start = DOCUMENT.index("John")
    sentence = context.predict((start, start + len("John Smith stayed in Paris.")), "student")
    assert [e.score for e in sentence] == pytest.approx(
        [e.score for e in context.predict(1, "student")], abs=1e-5
    )
    for entity in context.predict((10, 300), "joint"):
        assert entity.end > 10
        assert entity.start < 300
        assert DOCUMENT[entity.start : entity.end] == entity.text
    whole = context.predict((0, len(DOCUMENT)), "student")
    assert whole
    assert all(DOCUMENT[e.start : e.end] == e.text for e in whole)


def test_a_context_is_kept_in_a_file_for_its_own_pair(ner_run, tmp_path):
    pair = tsarch.load(ner_run, device="cpu")
    context = pair.read(DOCUMENT)
    context.save(tmp_path / "document.safetensors")
    again = tsarch.load(ner_run, device="cpu").load_context(tmp_path / "document.safetensors")
    assert again.predict(mode="joint") == context.predict(mode="joint")
    assert again.num_bytes == context.num_bytes
    pair.revision = "another"
    with pytest.raises(UserError, match="has the states of another pair"):
        pair.load_context(tmp_path / "document.safetensors")
    (tmp_path / "x").write_text("x")
    with pytest.raises(UserError, match="can't be read"):
        pair.load_context(tmp_path / "x")


def test_wrong_windows_are_told(ner_run):
    pair = tsarch.load(ner_run, device="cpu")
    context = pair.read([["Maria", "Rossi"], ["Rome"]])
    assert len(context.predict()) == 2
    with pytest.raises(UserError, match="It has 2, counted from 0"):
        context.predict(2)
    with pytest.raises(UserError, match="needs a document that is a plain text"):
        context.predict((0, 5))
    for window in ((100, 200), (3, 3), (4, 0)):
        with pytest.raises(UserError, match="has no words of the document"):
            pair.read("Rome").predict(window)
    for window in ("x", [], [0, "x"], (0,), (0, 1, 2), 1.5, True):
        with pytest.raises(UserError, match="is neither a sentence's number nor"):
            pair.read("Rome").predict(window)


@pytest.mark.slow
def test_documents_of_labelled_sentences_are_read_once_too(tmp_path):
    run_training(run_of(tmp_path, "classification"))
    pair = tsarch.load(tmp_path / "run", device="cpu")
    sentences = ["A fine day .", "Nothing happened at all .", "What now ?"]
    rows = [{"text": own, "doc_id": "a"} for own in sentences]
    context = pair.read(sentences)
    for mode in ("student", "joint"):
        assert context.predict(mode=mode) == pair.predict(rows, mode)
        found = [context.predict(n, mode) for n in range(3)]
        assert [own.score for own in found] == pytest.approx(
            [own.score for own in pair.predict(rows, mode)], abs=1e-5
        )
    run = tmp_path / "other"
    run.mkdir()
    run_training(run_of(run, "relation"))
    with pytest.raises(UserError, match="whose teacher reads what is asked or written too"):
        tsarch.load(run / "run", device="cpu").read([{"tokens": ["a"], "head": [0, 1]}])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "model", "beams"),
    [("translation", "llama", 1), ("summarization", "t5", 3), ("dialogue", "gpt2", 1)],
)
def test_texts_are_those_that_the_run_generates(tmp_path, task, model, beams):
    raw = generative_raw(tmp_path, task, model)
    raw["run"]["folder"] = str(tmp_path / "run")
    raw["schedule"] = {"max_steps": 6}
    raw["topology"] = {"runner": "local", "device": "cpu", "threads": 1}
    raw["decoding"] = {"num_beams": beams, "batch": 5, "max_texts": 100}
    run_training(parse_config(raw, "tiny"))
    blueprint, task_file = open_run(tmp_path / "run")
    prepared = prepare_split(blueprint, "test", ())
    crew = LocalCrew(blueprint, prepared)
    crew.ask(RankApi.load, tmp_path / "run" / "model")
    source = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    pair, own_task = tsarch.load(tmp_path / "run", device="cpu"), make_task(task, ())
    assert is_writing(own_task)
    for mode in pair.modes:
        expected = crew.generate("test", mode, task_file.joint_weight)
        found = pair.predict(source, mode)
        tokens = [expected[n] for n in range(len(source))]
        assert [own.text for own in found] == own_task.spelled(tokens, blueprint.tokenizer())
        assert all(own.score <= 0 for own in found)
    if task == "translation":
        (found,) = pair.predict([source[0]["source"]])
        assert found == pair.predict(source[:1])[0]


def test_models_that_no_mode_needs_are_not_loaded(ner_run):
    whole = tsarch.load(ner_run, device="cpu")
    text = ["Maria Rossi flew from Rome to Paris ."]
    for mode, teacher, student in (("student_alone", False, True), ("teacher", True, False)):
        own = tsarch.load(ner_run, device="cpu", modes=[mode])
        assert own.modes == (mode,)
        assert own.default_mode == mode
        pair = own._answering._pair
        assert (pair.has_teacher, pair.has_student) == (teacher, student)
        assert own.predict(text) == whole.predict(text, mode)
        with pytest.raises(UserError, match="mode joint: is none of this pair"):
            own.predict(text, "joint")
    fed = tsarch.load(ner_run, device="cpu", modes=["student"])
    assert fed.read(text[0]).predict() == whole.read(text[0]).predict(mode="student")
    with pytest.raises(UserError, match="modes: names none"):
        tsarch.load(ner_run, device="cpu", modes=[])


def test_a_mode_that_is_none_is_refused_before_a_model_is_loaded(ner_run, monkeypatch):
    loaded = Mock()
    monkeypatch.setattr("tsarch.run.saved_run.saved_pair", loaded)
    with pytest.raises(UserError, match="mode both: is none of this pair's"):
        tsarch.load(ner_run, device="cpu", modes=["both"])
    loaded.assert_not_called()
