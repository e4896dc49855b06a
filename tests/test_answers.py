"""Answers: what they are, and that metrics computed from them are the tasks' own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import QUICKSTART_MODEL, packing_spec
from tsarch.config import DataConfig
from tsarch.data.corpus import read_rows
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.tokenizer import load_tokenizer
from tsarch.records import FloatArray, TokenizedSplit
from tsarch.seeding import generator
from tsarch.tasks.answers import Entity, GeneratedText, Label, NoAnswer, Relation, SpanAnswer
from tsarch.tasks.base import is_answering, is_writing
from tsarch.tasks.chinese import joined
from tsarch.tasks.collect import Collector, WindowOutputs
from tsarch.tasks.decoding import Decoder, DecodingSpec
from tsarch.tasks.ner import entities
from tsarch.tasks.registry import make_task, row_reader
from tsarch.tasks.scripts import writing
from tsarch.tasks.squad import score_answer

TAGS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
ANSWERING = ("ner", "classification", "relation", "ranking", "qa", "multiple_choice")


def raw_rows(task: str, rng: np.random.Generator, num_rows: int = 30) -> list[dict[str, Any]]:
    """Random rows with random labels."""

    def words(least: int) -> list[str]:
        return rng.choice(
            ["Ann", "Lee", "sings", "in", "Rome"], size=rng.integers(least, 9)
        ).tolist()

    made = []
    for number in range(num_rows):
        own = words(3)
        text = " ".join(own)
        if task == "ner":
            kinds = rng.choice(["O", "B-LOC", "B-PER"], size=len(own)).tolist()
            row: dict[str, Any] = {"tokens": own, "tags": kinds}
        elif task == "classification":
            row = {"text": text, "label": str(rng.choice(["x", "y", "z"]))}
        elif task == "relation":
            relation = str(rng.choice(["Other", "r", "s"]))
            row = {"tokens": own, "head": [0, 1], "tail": [1, 3], "relation": relation}
        elif task == "ranking":
            relevance = int(rng.integers(3))
            row = {"query": f"who {number // 5}", "passage": text, "relevance": relevance}
        elif task == "qa":
            answers = {"text": [own[0]], "answer_start": [0]}
            none: dict[str, Any] = {"text": [], "answer_start": []}
            row = {"id": number, "context": text, "question": "Who?"}
            row["answers"] = answers if rng.random() < 0.7 else none
        else:
            choices = [" ".join([*words(1), place]) for place in ("here", "there", "home")]
            row = {"question": text, "choices": choices, "answer": int(rng.integers(3))}
        made.append(row)
    return made


def packed(task: str, rows: list[dict[str, Any]]) -> tuple[TokenizedSplit, Any]:
    """Rows as a split, and the task over their labels."""
    reader = row_reader(task, DataConfig())
    read = read_rows(rows, reader)
    labels = reader.labels(sorted({name for row in read for name, _ in reader.label_names(row)}))
    tokens = RowTokenizer(load_tokenizer(QUICKSTART_MODEL), None, keep=False)
    split = reader.layout(packing_spec(tokens, 64, 40), labels).pack(read)
    return split, make_task(task, labels)


def random_scores(task: str, split: TokenizedSplit, rng: np.random.Generator) -> FloatArray:
    """Probabilities of labels, or logits of spans, somewhat right."""
    if task == "qa":
        return rng.normal(size=(split.num_words, 2)).astype(np.float32)
    num_labels = int(split.labels.max()) + 1
    logits = rng.normal(size=(split.num_words, num_labels))
    logits[np.arange(split.num_words), split.labels] += 1.5
    powers = np.exp(logits)
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def collected(collector: Collector, scores: FloatArray, outputs: FloatArray) -> Any:
    """What a collector keeps of a model that says `scores` fed and something else alone."""
    num_words = len(scores)
    words = np.arange(2 * num_words).reshape(2, num_words) % num_words
    said = torch.from_numpy(np.stack([scores, outputs]))
    labels = torch.zeros(2, num_words, dtype=torch.int64)
    batch: Any = SimpleNamespace(words=words, fed=np.array([1, 0]))
    collector.add(WindowOutputs(batch, labels, said, said * 0.5, torch.zeros(1, 1)))
    return collector.result()


@given(st.lists(st.sampled_from(TAGS), min_size=1, max_size=12))
def test_entities_are_those_of_seqeval_in_strict_mode(tags: list[str]) -> None:
    from seqeval.scheme import IOB2
    from seqeval.scheme import Entities as Reference

    reference = Reference([tags], IOB2)
    assert entities(tags) == [(own.tag, own.start, own.end) for own in reference.entities[0]]


@pytest.mark.parametrize("task_name", ANSWERING)
@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_the_answers_are_the_tasks_own(task_name: str, seed: int) -> None:
    rng = generator(seed, task_name)
    split, task = packed(task_name, raw_rows(task_name, rng))
    scores = random_scores(task_name, split, rng)
    answers = task.answers(split, scores)
    assert len(answers) == len(split.rows)
    predicted = scores
    if task_name == "multiple_choice":
        predicted = scores[:, 1]
    elif task_name == "ranking":
        predicted = scores @ np.arange(3)
    elif task_name != "qa":
        predicted = scores.argmax(-1)
    found = task.metrics(split, predicted)
    for name, value in counted(task_name, split, answers).items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def counted(task: str, split: TokenizedSplit, answers: list[tuple[Any, ...]]) -> dict[str, float]:
    """Metrics counted from answers alone."""
    rows = split.rows
    if task == "qa":
        texts = [own.text if isinstance(own, SpanAnswer) else "" for (own,) in answers]
        pairs = zip(texts, rows, strict=True)
        scores = [score_answer(t, row.answers, writing(row.passage)) for t, row in pairs]
        share = np.mean([isinstance(own, NoAnswer) for (own,) in answers])
        f1 = float(np.mean([score.f1 for score in scores]))
        return {"f1": f1, "no_answer_share": float(share)}
    if task == "ner":
        said = {(n, e.type, e.first, e.stop) for n, own in enumerate(answers) for e in own}
        gold = {(n, *entity) for n, row in enumerate(rows) for entity in entities(row.tags)}
        right = len(said & gold)
        return {"precision": right / len(said), "recall": right / len(gold)}
    if task == "ranking":
        found = {}
        for row, (own,) in zip(rows, answers, strict=True):
            found.setdefault(row.query_id, []).append((-own.relevance, int(row.label)))
        ordered = [[grade for _, grade in sorted(own)] for own in found.values()]
        firsts = [next(n for n, g in enumerate(own) if g) for own in ordered if len(set(own)) > 1]
        return {"mrr": float(np.mean([1 / (1 + first) for first in firsts]))}
    names = [own.name for (own,) in answers]
    if task == "multiple_choice":
        hits = [name == row.choices[row.answer] for name, row in zip(names, rows, strict=True)]
        return {"accuracy": float(np.mean(hits))}
    hits = [name == row.label for name, row in zip(names, rows, strict=True)]
    if task == "classification":
        return {"accuracy": float(np.mean(hits))}
    related = [name != "Other" for name in names]
    right = sum(hit and own for hit, own in zip(hits, related, strict=True))
    gold_related = sum(row.label != "Other" for row in rows)
    return {"precision": right / sum(related), "recall": right / gold_related}


@pytest.mark.parametrize("task_name", ANSWERING)
def test_score_collectors_keep_what_the_others_decide_on(task_name: str) -> None:
    rng = generator(0, task_name)
    split, task = packed(task_name, raw_rows(task_name, rng, 5))
    assert is_answering(task)
    logits = random_scores(task_name, split, rng), random_scores(task_name, split, rng)
    kept = collected(task.score_collector(0.3), *logits)
    decided = collected(task.collector([0.3]), *logits)
    modes = ["teacher", "student", "student_alone", *([] if task_name == "qa" else ["joint"])]
    for mode in modes:
        scores = getattr(kept, mode)
        if task_name == "multiple_choice":
            scores = scores[..., 1]
        elif task_name == "ranking":
            scores = scores @ np.arange(3, dtype=np.float32)
        elif task_name != "qa":
            np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-5)
            scores = scores.argmax(-1)
        assert np.array_equal(scores, getattr(decided, mode)), mode


def test_an_entity_has_its_words_and_the_mean_of_their_probabilities() -> None:
    rows = [{"tokens": ["Ann", "Lee", "sings"], "tags": ["B-PER", "I-PER", "O"]}]
    split, task = packed("ner", [*rows, {"tokens": ["北", "京", "x"], "tags": ["O", "B-PER", "O"]}])
    assert task.labels == ("O", "B-PER", "I-PER")
    scores = np.array(
        [[0.1, 0.9, 0], [0.2, 0.2, 0.6], [1, 0, 0], [0, 1, 0], [0.5, 0, 0.5], [0, 0, 1]],
        dtype=np.float32,
    )
    first, second = task.answers(split, scores)
    assert [(own.type, own.first, own.stop, own.text) for own in first] == [
        ("PER", 0, 2, "Ann Lee")
    ]
    assert first[0].score == pytest.approx(0.75)
    assert second == (Entity("PER", 0, 1, "北", 1.0),)
    assert joined(["北", "京", "is", "北", "京"]) == "北京 is 北京"


def test_a_label_wins_by_votes_and_shows_all_probabilities() -> None:
    split, task = packed("classification", [{"text": "a b", "label": n} for n in "xy"])
    scores = np.array([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9]] * 2, dtype=np.float32)
    for (own,) in task.answers(split, scores):
        assert isinstance(own, Label)
        assert own.name == "x", "two votes of three"
        assert own.scores == pytest.approx({"x": 1.3 / 3, "y": 1.7 / 3})
        assert own.score == own.scores["x"]


def test_a_relation_shows_both_entities() -> None:
    row = {"tokens": ["Ann", "Lee", "sings", "in", "Rome"], "head": [0, 2], "tail": [4, 5]}
    split, task = packed("relation", [row | {"relation": name} for name in ("r", "s")])
    (first,), (second,) = task.answers(split, np.array([[0.25, 0.75], [1, 0]], dtype=np.float32))
    assert first == Relation("s", "Ann Lee", "Rome", 0.75, {"r": 0.25, "s": 0.75})
    assert second.name == "r"


def test_answers_need_no_labels() -> None:
    rng = generator(0, "labels")
    for name in ANSWERING:
        rows = raw_rows(name, rng, 4)
        split, task = packed(name, rows)
        scores = random_scores(name, split, rng)
        reader = row_reader(name, DataConfig(), labelled=False)
        tokens = RowTokenizer(load_tokenizer(QUICKSTART_MODEL), None, keep=False)
        layout = reader.layout(packing_spec(tokens, 64, 40), getattr(task, "labels", ()))
        bare = layout.pack(read_rows(rows, reader))
        assert task.answers(bare, scores) == task.answers(split, scores)


SPEC = DecodingSpec(
    num_beams=2,
    length_penalty=1.0,
    sample=False,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    no_repeat_ngram=0,
    max_tokens=4,
    end=0,
)


def test_a_generated_text_has_the_score_that_chose_it() -> None:
    decoder = Decoder(SPEC, generator(0, "decoding", 0))
    decoder.choose(torch.log(torch.tensor([[0.1, 0.6, 0.3]])))
    while not decoder.is_done:
        num_rows = len(decoder.hypotheses)
        decoder.choose(torch.log(torch.tensor([[0.9, 0.05, 0.05]])).expand(num_rows, 3))
    assert decoder.best == [1]
    assert decoder.best_score == pytest.approx((np.log(0.6) + np.log(0.9)) / 2, abs=1e-6)


@pytest.mark.parametrize("name", ["translation", "summarization", "dialogue"])
def test_generated_tokens_become_texts_of_one_line(name: str, tmp_path: Path) -> None:
    task = make_task(name, ())
    assert is_writing(task)
    assert not is_answering(task)
    tokenizer = load_tokenizer(QUICKSTART_MODEL)
    ids = tokenizer("ann\n sings")["input_ids"]
    assert task.text_answers([ids], [-0.5], tokenizer) == [(GeneratedText("ann sings", -0.5),)]
