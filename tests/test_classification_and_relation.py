"""Tasks with one label a row: reading, contexts and windows, votes, metrics, whole runs."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.equal_losses import check_equal_losses
from tests.helpers import ROOT, read_task, tiny_config, write_jsonl
from tsarch.blueprint import resolve
from tsarch.config import Config, DataConfig
from tsarch.config_loading import load_config
from tsarch.data.corpus import Corpus
from tsarch.data.packing import Sentence, pack_rows
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.prepare import prepare_data
from tsarch.rank.local_crew import LocalCrew
from tsarch.records import TokenizedSplit
from tsarch.run.evaluate import JOINT_WEIGHTS, choose_and_evaluate
from tsarch.tasks.classification import ClassificationTask
from tsarch.tasks.registry import make_task
from tsarch.tasks.relation import RelationTask
from tsarch.tasks.votes import row_votes

GOOD = {
    "classification": {"text": "a b  c", "label": "x"},
    "relation": {"tokens": ["a", "b", "c", "d"], "head": [2, 4], "tail": [0, 1], "relation": "r"},
}
OTHER = {
    "classification": {"text": "d", "label": "y"},
    "relation": GOOD["relation"] | {"relation": "s"},
}
DATA = {
    "classification": "csabstruct",
    "relation": "semeval",
    "ranking": "squadshifts_ranking",
}


def read(folder: Path, task: str, rows: list[dict[str, object]]) -> Corpus[Any]:
    """All three splits have these rows."""
    path = str(write_jsonl(folder / "rows.jsonl", rows))
    return read_task(task, DataConfig(train=path, validation=path, test=path))


def mistake(folder: Path, task: str, row: dict[str, object]) -> str:
    """What is said of a second row."""
    with pytest.raises(UserError) as caught:
        read(folder, task, [GOOD[task], row])
    texts = [str(own) for own in caught.value.mistakes]
    assert len(texts) == 1, "once for the file that is every split"
    where, _, what = texts[0].partition(":2: ")
    assert where == str(folder / "rows.jsonl")
    return what


def test_a_text_has_one_label(tmp_path):
    corpus = read(tmp_path, "classification", [GOOD["classification"], OTHER["classification"]])
    assert corpus.labels == ("x", "y")
    row = corpus.rows["train"][0]
    assert (row.text, row.label) == ("a b  c", "x")


def test_both_entities_are_marked_and_the_label_stands_before_the_first(tmp_path):
    other = OTHER["relation"]
    row = read(tmp_path, "relation", [GOOD["relation"], other]).rows["train"][0]
    assert row.words == ["#", "a", "#", "b", "@", "c", "d", "@"]
    assert (row.label, row.focus) == ("r", 0)
    same = [row | {"doc_id": "d"} for row in (GOOD["relation"], other)]
    shared = read(tmp_path, "relation", same).rows["train"]
    assert len({row.origin.doc_id for row in shared}) == 2, "a context of its own"
    later = {**GOOD["relation"], "head": [1, 2], "tail": [3, 4]}
    row = read(tmp_path, "relation", [later, other]).rows["train"][0]
    assert row.words == ["a", "@", "b", "@", "c", "#", "d", "#"]
    assert row.focus == 1
    nested = {**GOOD["relation"], "head": [1, 2], "tail": [1, 3]}
    row = read(tmp_path, "relation", [nested, other]).rows["train"][0]
    assert row.words == ["a", "@", "#", "b", "@", "c", "#", "d"]


@pytest.mark.parametrize(
    ("task", "change", "what"),
    [
        ("classification", {"text": " "}, "`text` is empty."),
        ("classification", {"text": 5}, "`text` is 5, not a string."),
        ("classification", {"label": None}, "`label` is None, not a string."),
        ("relation", {"head": [0, 9]}, "`head` is [0, 9), outside the 4 tokens or empty."),
        (
            "relation",
            {"tail": [1, 1]},
            "`tail` is [1, 1), outside the 4 tokens or empty. If ends are the last words, set "
            "data.span_ends: inclusive.",
        ),
        ("relation", {"head": "x"}, "`head` is 'x', not a span [start, end) of two whole numbers."),
        ("relation", {"relation": ""}, "`relation` is empty."),
    ],
)
def test_mistakes_name_their_line(tmp_path, task, change, what):
    assert mistake(tmp_path, task, GOOD[task] | change) == what


def test_labels_that_train_does_not_have_are_named_with_their_line(tmp_path):
    train = str(
        write_jsonl(tmp_path / "train.jsonl", [GOOD["classification"], OTHER["classification"]])
    )
    other = [GOOD["classification"], {"text": "d", "label": "z"}]
    test = str(write_jsonl(tmp_path / "test.jsonl", other))
    with pytest.raises(UserError, match=r"test.jsonl:2.*label `z` is in test but not in train"):
        read_task("classification", DataConfig(train=train, validation=train, test=test))


def row_of(num_words: int, first: int, document: str = "d", focus: int | None = None) -> Sentence:
    """Words of one token each."""
    tokens = list(range(first, first + num_words))
    return Sentence(document, tokens, list(range(num_words)), focus)


def texts(split: TokenizedSplit) -> list[list[int]]:
    return [split.token_ids[start:stop].tolist() for start, stop in split.windows]


def test_rows_of_a_document_share_a_context_and_have_a_window_each():
    rows = [row_of(2, 10), row_of(3, 20), row_of(2, 30, "e")]
    split = pack_rows(rows, [0, 1, 2], 9, [1], [2], teacher_max_tokens=12, student_max_tokens=3)
    assert split.token_ids.tolist() == [1, 9, 10, 11, 9, 20, 21, 22, 2, 1, 9, 30, 31, 2]
    assert texts(split) == [[9, 10, 11], [9, 20, 21], [9, 30, 31]]
    assert split.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert split.sentence_offsets.tolist() == [0, 3, 6, 9]
    # A window holds three tokens: word 22 is outside and carries no label.
    assert split.token_ids[split.words >= 0].tolist() == [9, 10, 11, 9, 20, 21, 9, 30, 31]
    assert split.window_offsets.tolist() == [0, 2, 3]


def test_a_text_longer_than_a_context_votes_and_loses_nothing():
    split = pack_rows([row_of(7, 10)], [1], 9, [1], [2], teacher_max_tokens=6, student_max_tokens=4)
    assert split.num_contexts == 3
    assert sorted(set(split.token_ids.tolist()) - {1, 2, 9}) == list(range(10, 17))
    assert split.labels.tolist() == [1] * 10
    assert split.sentence_offsets.tolist() == [0, 10]
    assert split.num_cut_tokens == 0


def test_of_a_long_row_four_words_vote_at_even_distances():
    args = {"teacher_max_tokens": 20, "student_max_tokens": 11}
    split = pack_rows([row_of(12, 10), row_of(4, 30)], [1, 2], 9, [1], [2], **args)
    assert split.token_ids[split.words >= 0].tolist() == [9, 10, 12, 15, 17, 9, 30, 31, 32, 33]
    assert split.labels.tolist() == [1] * 5 + [2] * 5


def test_a_word_of_several_tokens_carries_one_label():
    row = Sentence("d", [10, 11, 12], [0, -1, 1], None)
    split = pack_rows([row], [1], 9, [1], [2], teacher_max_tokens=8, student_max_tokens=4)
    assert split.words.tolist() == [-1, 0, 1, -1, 2, -1]
    assert split.labels.tolist() == [1, 1, 1]


def test_a_window_starts_where_the_label_stands_if_it_cannot_hold_the_row():
    split = pack_rows(
        [row_of(6, 10, focus=2)], [0], 9, [1], [2], teacher_max_tokens=20, student_max_tokens=4
    )
    assert split.token_ids.tolist() == [1, 10, 11, 9, 12, 13, 14, 15, 2]
    assert texts(split) == [[9, 12, 13, 14]]
    assert split.words.tolist() == [-1, -1, -1, 0, -1, -1, -1, -1, -1]
    assert split.labels.tolist() == [0]


def test_of_a_marked_row_longer_than_a_context_the_piece_with_the_marks_is_kept():
    split = pack_rows(
        [row_of(9, 10, focus=4)], [0], 9, [1], [2], teacher_max_tokens=6, student_max_tokens=4
    )
    assert split.token_ids.tolist() == [1, 13, 9, 14, 15, 2]
    assert split.num_cut_tokens == 6


def last(row: Sentence, teacher_max_tokens: int, student_max_tokens: int) -> TokenizedSplit:
    """A row with its label after what it is about."""
    return pack_rows(
        [row], [1], 9, [1], [2], teacher_max_tokens, student_max_tokens, label_last=True
    )


def test_for_causal_models_the_label_stands_after_a_text_and_nowhere_else():
    split = last(row_of(3, 10), 8, 4)
    assert split.token_ids.tolist() == [1, 10, 11, 12, 9, 2]
    assert split.words.tolist() == [-1, -1, -1, -1, 0, -1]
    assert texts(split) == [[10, 11, 12, 9]]
    long = last(row_of(5, 10), 8, 4)
    assert texts(long) == [[12, 13, 14, 9]], "a window ends with the label"
    (cut,) = long.cuts
    assert (cut.what.split()[0], cut.num_tokens, cut.is_read) == ("starts", 2, True)
    pieces = last(row_of(7, 10), 6, 4)
    assert texts(pieces) == [[10, 11, 12, 9], [13, 14, 15, 9], [16, 9]]
    assert pieces.labels.tolist() == [1] * 3


def test_for_causal_models_the_label_of_a_relation_stands_after_both_entities():
    row = replace(row_of(8, 10, focus=1), marked=((1, 2), (4, 6)))
    split = last(row, 20, 9)
    assert split.token_ids.tolist() == [1, 10, 11, 12, 13, 14, 15, 9, 16, 17, 2]
    assert split.token_ids[split.words == 0].tolist() == [9]
    assert texts(split) == [[10, 11, 12, 13, 14, 15, 9, 16, 17]]
    assert texts(last(row, 20, 6)) == [[11, 12, 13, 14, 15, 9]]
    assert not last(row, 20, 6).cuts
    (cut,) = last(row, 20, 5).cuts
    assert "last entity alone" in cut.what
    ends = replace(row_of(4, 10, focus=0), marked=((0, 1), (3, 4)))
    assert last(ends, 20, 9).token_ids.tolist() == [1, 10, 11, 12, 13, 9, 2]
    halves = replace(row_of(12, 10, focus=0), marked=((0, 1), (11, 12)))
    assert last(halves, 9, 6).token_ids.tolist()[-3:] == [21, 9, 2]


def test_of_a_word_of_several_tokens_the_last_one_stands_before_the_label():
    row = Sentence("d", [10, 11, 12, 13], [0, -1, -1, 1], 0, ((0, 1),))
    assert last(row, 9, 9).token_ids.tolist() == [1, 10, 11, 12, 9, 13, 2]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt2", "llama", "mamba"])
def test_a_causal_pair_learns_what_stands_between_two_entities(tmp_path, model):
    names, cities, firms = ("ida", "olaf", "rosa"), ("riga", "turin", "quito"), ("acme", "zenit")
    rng = random.Random(0)

    def row() -> dict[str, Any]:
        is_city = rng.random() < 0.5
        tail = rng.choice(cities if is_city else firms)
        words = ["we", "read", "that", rng.choice(names), "is", "at", tail, "now", "."]
        relation = "lives_in" if is_city else "works_at"
        return {"tokens": words, "head": [3, 4], "tail": [6, 7], "relation": relation}

    files = {
        name: str(write_jsonl(tmp_path / f"pairs-{name}.jsonl", [row() for _ in range(count)]))
        for name, count in (("train", 120), ("validation", 20), ("test", 40))
    }
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 30522, "state_size": 4}
    heads = {"num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
    own = {"model_type": model, **sizes, **({} if model == "mamba" else heads)}
    summary = run_training(
        tiny_config(
            tmp_path,
            task={"name": "relation"},
            data=files,
            teacher={"config": own, "max_tokens": 40},
            student={"layers": None, "config": own, "max_tokens": 24},
            schedule={"epochs": 8},
            optimizer=dict.fromkeys(
                (f"{name}_learning_rate" for name in ("teacher", "student", "embedding")), 5e-3
            ),
            topology={"runner": "local", "threads": 1},
            evaluation={"before": False},
        )
    )
    for mode, scores in summary["after"].items():
        assert scores["f1_micro"] > 0.95, mode


def votes(*rows: list[int]) -> tuple[TokenizedSplit, np.ndarray]:
    sizes = [len(row) for row in rows]
    empty = np.empty(0, dtype=np.int64)
    offsets = np.array([0, *np.cumsum(sizes)])
    flat = np.array([v for row in rows for v in row])
    return TokenizedSplit(empty, empty, empty, empty, empty, flat, offsets), flat


def test_most_votes_win_and_of_equals_the_first():
    split, flat = votes([2, 0, 2], [1, 0], [0, 2, 1, 1], [3])
    assert row_votes(split, flat).tolist() == [2, 1, 1, 3]


def test_classification_metrics():
    split, _ = votes([0], [0], [1], [2])
    found = ClassificationTask("abc").metrics(split, np.array([0, 1, 1, 2]))
    # F1 of a: 2/3, of b: 2/3, of c: 1.
    assert found == pytest.approx({"accuracy": 0.75, "f1_macro": 7 / 9}, abs=1e-15)


def test_relation_metrics_leave_no_relation_out():
    """By hand, as TACRED's scorer counts: 2 right of 3 predicted and of 4 in the gold labels."""
    split, _ = votes([0], [1], [1], [2], [2], [0])
    found = RelationTask(["NA", "r", "s"]).metrics(split, np.array([0, 1, 0, 2, 0, 1]))
    precision, recall = 2 / 3, 2 / 4
    assert found["precision"] == pytest.approx(precision, abs=1e-15)
    assert found["recall"] == recall
    f1 = 2 * precision * recall / (precision + recall)
    assert found["f1_micro"] == pytest.approx(f1, abs=1e-15)
    # r: 1 right of 2 predicted and 2 gold; s: 1 right of 1 predicted and 2 gold.
    assert found["f1_macro"] == pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-15)


def test_no_relation_anywhere_scores_nothing():
    split, flat = votes([0], [0])
    assert set(RelationTask(["NA", "r"]).metrics(split, flat).values()) == {0.0}


def candidates_of(row: dict[str, Any]) -> list[dict[str, object]]:
    """A row for each passage of a query."""
    own = zip(row["passages"], row["relevance"], strict=True)
    return [{"query": row["query"], "passage": text, "relevance": grade} for text, grade in own]


def tiny_task(folder: Path, task: str, **sections: dict[str, object]) -> Config:
    """A tiny job on the first rows of the task's own data."""
    data: dict[str, object] = {}
    names: set[object] = set()
    (folder / "rows").mkdir()
    for split in ("train", "validation", "test"):
        lines = (ROOT / "configs" / DATA[task] / f"{split}.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines[:50]]
        if task == "ranking":
            rows = [own for row in rows[:8] for own in candidates_of(row)]
        label = {"classification": "label", "relation": "relation", "ranking": "relevance"}[task]
        names = names or {row[label] for row in rows}
        rows = [row for row in rows if row[label] in names]
        data[split] = str(write_jsonl(folder / "rows" / f"{split}.jsonl", rows))
    return tiny_config(folder, data=data, task={"name": task}, **sections)


@pytest.mark.parametrize("task", ["classification", "relation", "ranking"])
def test_training_improves_the_loss_and_all_modes_are_measured(tmp_path, task):
    config = tiny_task(tmp_path, task, schedule={"epochs": 4})
    prepared = prepare_data(resolve(config))
    crew = LocalCrew(resolve(config), prepared)
    reports = [report for own in crew.train(0, 12) for report in own]
    losses = [r.losses.means["teacher"] for r in reports if "teacher" in r.losses.means]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    split = prepared.splits["validation"]
    predictions = crew.evaluate("validation", JOINT_WEIGHTS)
    found = choose_and_evaluate(make_task(task, prepared.labels), split, predictions)
    assert all(0 <= value <= 1 for own in found.metrics.values() for value in own.values())


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "replicas"),
    [
        pytest.param("classification", (1, 2), marks=pytest.mark.replicas(1, 2)),
        pytest.param("relation", (1, 1), marks=pytest.mark.replicas(1, 1)),
        pytest.param("ranking", (1, 2), marks=pytest.mark.replicas(1, 2)),
    ],
)
def test_ranks_give_the_losses_of_one_process(tmp_path, crews, task, replicas):
    check_equal_losses(tiny_task(tmp_path, task), replicas, crews)


@pytest.mark.parametrize("task", ["classification", "relation", "ranking"])
def test_the_tasks_config_is_sound(task):
    config = load_config(ROOT / "configs" / f"{task}.yaml")
    assert config.task.name == task
    assert (ROOT / "configs" / DATA[task] / "README.md").exists()
