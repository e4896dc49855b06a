"""Ranking: rows and their other layouts, what both models read of a row, metrics, answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

import tsarch
from tests.helpers import QUICKSTART_MODEL, packing_spec, read_task, write_jsonl
from tests.test_pair import run_of
from tsarch.config import DataConfig
from tsarch.data.corpus import read_rows
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.tokenizer import load_tokenizer
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.records import TokenizedSplit
from tsarch.run.saved_run import evaluate_run
from tsarch.tasks.ranking import Candidate, RankingReader, RankingTask

QUERY = "Where does she sing?"
GOOD = {"query": QUERY, "passage": "Ann sings in Rome.", "relevance": 1}
BAD = {"query": QUERY, "passage": "It rains.", "relevance": 0}


def read(folder: Path, *rows: dict[str, Any]) -> list[Candidate]:
    path = str(write_jsonl(folder / "rows.jsonl", rows))
    return list(
        read_task("ranking", DataConfig(train=path, validation=path, test=path)).rows["train"]
    )


def told(rows: list[Candidate]) -> list[tuple[str, str, str | None]]:
    return [(row.query, row.passage, row.label) for row in rows]


def packed(
    rows: list[dict[str, Any]], teacher: int = 64, student: int = 40, **more: Any
) -> TokenizedSplit:
    reader = RankingReader(DataConfig())
    tokens = RowTokenizer(load_tokenizer(QUICKSTART_MODEL), None, keep=False)
    spec = packing_spec(tokens, teacher, student, **more)
    return reader.layout(spec, ("0", "1")).pack(read_rows(rows, reader))


@pytest.mark.parametrize(
    "row",
    [
        {"query": QUERY, "passages": [GOOD["passage"], BAD["passage"]], "relevance": [1, 0]},
        {
            "query": QUERY,
            "passages": {"passage_text": [GOOD["passage"], BAD["passage"]], "is_selected": [1, 0]},
        },
        {"query": QUERY, "positive": GOOD["passage"], "negative": [BAD["passage"]]},
        {"query": QUERY, "pos": [GOOD["passage"]], "neg": [{"text": BAD["passage"]}]},
    ],
)
def test_a_row_of_a_query_is_one_for_each_passage(tmp_path, row):
    rows = read(tmp_path, row, {**row, "query": "Another?"})
    assert told(rows[:2]) == told(read(tmp_path, GOOD, BAD))
    assert [own.query_id == rows[0].query_id for own in rows] == [True, True, False, False]
    places = [own.origin.place.name.rpartition(":")[2] for own in rows]
    assert places == ["1/0", "1/1", "2/0", "2/1"]


def test_rows_of_a_query_belong_together_by_its_name_or_its_text(tmp_path):
    assert [row.query_id for row in read(tmp_path, GOOD, BAD)] == [QUERY, QUERY]
    named = read(tmp_path, {**GOOD, "query_id": 7}, {**BAD, "query_id": "8"})
    assert [row.query_id for row in named] == ["7", "8"]


@pytest.mark.parametrize(
    ("value", "grade"), [(0, "0"), (3, "3"), (2.0, "2"), ("1", "1"), (True, "1")]
)
def test_grades_are_whole_numbers(tmp_path, value, grade):
    other = {**BAD, "relevance": 9}
    assert read(tmp_path, {**GOOD, "relevance": value}, other)[0].label == grade


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({**GOOD, "relevance": 0.5}, "`relevance` is 0.5, not a whole number from 0 to 100."),
        ({**GOOD, "relevance": -1}, "`relevance` is -1, not a whole number from 0 to 100."),
        ({**GOOD, "relevance": 10**9}, "`relevance` is 1000000000, not a whole number from"),
        ({**GOOD, "relevance": "good"}, "`relevance` is 'good', not a whole number from 0 to 100."),
        ({**GOOD, "passage": " "}, "`passage` is empty."),
        ({"query": QUERY, "passage": "a"}, "has no column `relevance`."),
    ],
)
def test_what_is_wrong_with_a_row_is_told(tmp_path, row, what):
    with pytest.raises(UserError) as caught:
        read(tmp_path, GOOD, row)
    assert f"rows.jsonl:2: {what}" in str(caught.value)


def test_lists_of_unlike_length_are_told(tmp_path):
    row = {"query": QUERY, "passages": ["a", "b"], "relevance": [1]}
    with pytest.raises(UserError, match=r"is \[1\], not a list of 2 numbers, one a passage"):
        read(tmp_path, row)


def test_grades_are_in_their_own_order():
    reader = RankingReader(DataConfig())
    assert reader.labels(["0", "1", "10", "2"]) == ("0", "1", "2", "10")
    assert reader.nothing_to_learn(["0"]) == "has one relevance only, 0"
    assert not reader.nothing_to_learn(["0", "1"])


def spelled(split: TokenizedSplit, places: Any) -> list[str]:
    tokenizer = load_tokenizer(QUICKSTART_MODEL)
    return list(tokenizer.convert_ids_to_tokens(split.token_ids[places].tolist()))


def test_both_models_read_query_and_passage():
    split = packed([GOOD, BAD])
    own = "[CLS] where does she sing ? [SEP] ann sings in rome ."
    assert spelled(split, slice(*split.context_offsets[:2])) == ["[CLS]", *own.split(), "[SEP]"]
    assert spelled(split, split.window_places(0)) == own.split()
    assert split.num_contexts == 2
    assert split.labels.tolist() == [1] * 5 + [0] * 5


def test_a_long_passage_loses_its_end_and_that_is_told():
    row = {**GOOD, "passage": "Ann " + "sings " * 40 + "here."}
    split = packed([BAD, row], teacher=32, student=16)
    assert split.context_lengths.tolist()[1] == 32
    cut, window = sorted(split.cuts, key=lambda own: own.is_read)
    assert (cut.what, cut.rows, cut.of) == (
        "ends of passages longer than a context (teacher.max_tokens)",
        (1,),
        "passage",
    )
    ((start, stop),) = cut.spans[0]
    assert row["passage"][:start].split() == ["Ann", *["sings"] * (start // 6)]
    assert stop == len(row["passage"])
    assert window.is_read
    kept = " ".join(spelled(split, split.window_places(1))[:7])
    assert kept == "[CLS] where does she sing ? [SEP]"


def test_a_causal_student_reads_the_query_last():
    split = packed([{**GOOD, "passage": "Ann " + "sings " * 40}], student=12, label_last=True)
    own = spelled(split, split.window_places(0))
    assert own[-7:] == ["[SEP]", "where", "does", "she", "sing", "?", "[CLS]"]
    assert split.labels.tolist() == [1]


def test_a_query_longer_than_a_context_is_refused():
    with pytest.raises(UserError, match="row 2: its query leaves no room for a passage: 11 tokens"):
        packed([BAD, {**GOOD, "query": "who " * 30}], teacher=15, student=8)


def ranked(*queries: list[int]) -> Any:
    """A split of queries with the grades of their candidates, a place each."""
    rows = [SimpleNamespace(query_id=n) for n, own in enumerate(queries) for _ in own]
    labels = np.concatenate(queries)
    offsets = np.arange(len(labels) + 1)
    return SimpleNamespace(
        rows=rows, labels=labels, sentence_offsets=offsets, check_labels=lambda what: None
    )


def test_metrics_are_counted_by_query():
    """Ranks 2 and 1; a query without relevant passages, and one of nothing else, don't count."""
    split = ranked([0, 1, 0], [1, 0], [0, 0], [1])
    found = RankingTask(("0", "1")).metrics(
        split, np.array([0.9, 0.5, 0.1, 0.8, 0.2, 1, 0, 0.0], "f4")
    )
    assert found["mrr"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["ndcg_10"] == pytest.approx((1 / np.log2(3) + 1) / 2)


def test_the_reciprocal_rank_is_that_of_scikit_learn_where_one_passage_is_relevant():
    rng = np.random.default_rng(0)
    for _ in range(20):
        grades = np.zeros(7, dtype=int)
        grades[rng.integers(7)] = 1
        scores = rng.integers(0, 4, 7).astype("f4")  # with equal ones
        found = RankingTask(("0", "1")).metrics(ranked(grades), scores)
        assert found["mrr"] == pytest.approx(
            label_ranking_average_precision_score([grades], [scores])
        )


def test_graded_relevance_is_weighed():
    split = ranked([0, 3, 1, 1])
    scores = np.array([0.1, 0.2, 2.5, 1.0], "f4")
    found = RankingTask(("0", "1", "3")).metrics(
        SimpleNamespace(**{**vars(split), "labels": np.array([0, 2, 1, 1])}), scores
    )
    assert found["ndcg_10"] == pytest.approx(ndcg_score([[0, 3, 1, 1]], [scores]))
    assert found["mrr"] == 1


def test_a_split_without_anything_to_order_is_told():
    task = RankingTask(("0", "1"))
    assert task.lacks(ranked([1, 0])) == ""
    assert "no query with a relevant passage" in task.lacks(ranked([0, 0], [1]))
    assert task.metrics(ranked([0, 0]), np.zeros(2, "f4")) == {"mrr": 0.0, "ndcg_10": 0.0}


def test_a_run_is_measured_again_and_answers(tmp_path):
    summary = run_training(run_of(tmp_path, "ranking"))
    again = evaluate_run(tmp_path / "run", "test").evaluation
    for mode, metrics in summary["after"].items():
        assert again.metrics[mode] == pytest.approx(metrics, abs=1e-9)
    pair = tsarch.load(tmp_path / "run", device="cpu")
    given = [{"query": QUERY, "passage": own["passage"]} for own in (GOOD, BAD)]
    for own in pair.predict(given, "student"):
        assert own.relevance == pytest.approx(own.scores["1"])
        assert own.name == max(own.scores, key=own.scores.get)
        assert own.score == max(own.scores.values())
    with pytest.raises(UserError, match="read: is not for ranking, whose teacher reads what is"):
        pair.read([given[0]])
