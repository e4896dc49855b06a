"""Rows that are only predicted: each task reads and packs them without labels and makes none up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import QUICKSTART_MODEL, packing_spec, tiny_blueprint, write_jsonl
from tsarch.config import DataConfig
from tsarch.data.corpus import read_file, read_rows, read_splits
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.tokenizer import load_tokenizer
from tsarch.errors import UserError
from tsarch.feeds import batch_plan, training_feed
from tsarch.records import IGNORED, TokenizedSplit
from tsarch.tasks.registry import make_task, row_reader
from tsarch.topology import Topology

PASSAGE = "Ann Lee, born in 1950, sings in Rome."
GIVEN: dict[str, dict[str, Any]] = {
    "ner": {"tokens": ["Ann", "sings", "in", "Rome"], "doc_id": "d"},
    "classification": {"text": "Ann sings in Rome", "doc_id": "d"},
    "relation": {"tokens": ["Ann", "sings", "in", "Rome"], "head": [0, 1], "tail": [3, 4]},
    "ranking": {"query": "Who sings?", "passage": PASSAGE},
    "qa": {"id": "a", "context": PASSAGE, "question": "Where does she sing?"},
    "translation": {"source": "Ann sings"},
    "summarization": {"document": "Ann sings"},
    "dialogue": {"history": ["hello", "Ann sings"]},
    "code": {"description": "The sum.", "start": "def f(a, b):"},
    "multiple_choice": {"question": "Who sings ?", "choices": ["Ann", "a stone"]},
}
LABELS: dict[str, dict[str, Any]] = {
    "ner": {"tags": ["B-PER", "O", "O", "B-LOC"]},
    "classification": {"label": "x"},
    "relation": {"relation": "r"},
    "ranking": {"relevance": 1},
    "qa": {"answers": {"text": ["Rome"], "answer_start": [32]}},
    "translation": {"target": "Ann chante", "references": ["Ann chante bien"]},
    "summarization": {"summary": "Ann"},
    "dialogue": {"response": "yes"},
    "code": {"code": "return a + b"},
    "multiple_choice": {"answer": 0},
}


def packed(task: str, row: dict[str, Any], labelled: bool, labels: tuple[str, ...]) -> Any:
    """One row, read and packed."""
    reader = row_reader(task, DataConfig(), labelled)
    tokens = RowTokenizer(load_tokenizer(QUICKSTART_MODEL), None, keep=False)
    return reader.layout(packing_spec(tokens, 64, 24), labels).pack(read_rows([row], reader))


def labels_of(task: str) -> tuple[str, ...]:
    reader = row_reader(task, DataConfig())
    (row,) = read_rows([GIVEN[task] | LABELS[task]], reader)
    return reader.labels(sorted({name for name, _ in reader.label_names(row)}))


@pytest.mark.parametrize("task", GIVEN)
def test_labels_are_absent_and_all_else_is_as_with_them(task: str) -> None:
    labels = labels_of(task)
    with_labels = packed(task, GIVEN[task] | LABELS[task], True, labels)
    without = packed(task, GIVEN[task], False, labels)
    assert (without.labels == IGNORED).all()
    assert (with_labels.labels != IGNORED).all()
    if task in ("translation", "summarization", "dialogue", "code"):
        stop = len(without.token_ids)
        assert np.array_equal(without.token_ids, with_labels.token_ids[:stop])
        assert np.array_equal(without.windows[0], [with_labels.windows[0, 0], stop])
        assert without.num_words == 1, "the start, which predicts the first token"
    else:
        for name in ("token_ids", "words", "context_offsets", "sentence_offsets"):
            assert np.array_equal(getattr(with_labels, name), getattr(without, name)), name
        assert len(without.windows) >= 1
    assert len(without.rows) == 1


@pytest.mark.parametrize("task", GIVEN)
def test_labels_that_are_there_are_not_looked_at(task: str) -> None:
    labels = labels_of(task)
    wrong = dict.fromkeys(LABELS[task])
    found = packed(task, GIVEN[task] | wrong, False, labels)
    assert repr(found.rows) == repr(packed(task, GIVEN[task], False, labels).rows)
    with pytest.raises(UserError):
        packed(task, GIVEN[task] | wrong, True, labels)


@pytest.mark.parametrize("task", GIVEN)
def test_rows_without_labels_are_mistakes_where_labels_are_needed(task: str) -> None:
    needed = next(iter(LABELS[task]))
    with pytest.raises(UserError, match=f"input:row 1: has no column `{needed}`"):
        packed(task, GIVEN[task], True, labels_of(task))


@pytest.mark.parametrize("task", GIVEN)
def test_what_is_given_is_checked_as_ever(task: str) -> None:
    for name in GIVEN[task]:
        if name not in ("doc_id", "description"):  # which may be absent
            with pytest.raises(UserError, match=r"input:row 1: "):
                packed(task, GIVEN[task] | {name: None}, False, labels_of(task))


@pytest.mark.parametrize("task", GIVEN)
def test_metrics_and_training_refuse_them(tmp_path: Path, task: str) -> None:
    labels = labels_of(task)
    split: TokenizedSplit = packed(task, GIVEN[task], False, labels)
    refused = "needs labels, which these rows don't have"
    with pytest.raises(UserError, match=refused):
        make_task(task, labels).metrics(split, np.zeros((split.num_words, 2)))
    blueprint = tiny_blueprint(tmp_path)
    with pytest.raises(UserError, match=refused):
        training_feed(blueprint, split, batch_plan(blueprint, split), Topology.pair(1, 1))
    partly = replace(split, labels=np.array([0] * (split.num_words - 1) + [IGNORED]))
    with pytest.raises(UserError, match=refused):
        partly.check_labels("this")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "conll"])
def test_every_format_may_leave_labels_out(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    words = [["Ann", "sings"], ["Rome"]]
    if kind == "jsonl":
        write_jsonl(path, [{"tokens": own} for own in words])
    elif kind == "csv":
        path.write_text("tokens\nAnn sings\nRome\n")
    elif kind == "conll":
        path.write_text("Ann\nsings\n\nRome\n")
    else:
        from datasets import Dataset

        Dataset.from_list([{"tokens": own} for own in words]).to_parquet(str(path))
    data = DataConfig(cache_folder=str(tmp_path / "cache"))
    rows = read_file(str(path), data, row_reader("ner", data, labelled=False))
    assert [(row.words, row.tags) for row in rows] == [(own, None) for own in words]
    with pytest.raises(UserError):
        read_file(str(path), data, row_reader("ner", data))


def test_a_file_of_mistakes_names_them_all(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"tokens": 5}, {"tokens": ["a"]}, {}])
    data = DataConfig()
    with pytest.raises(UserError) as caught:
        read_file(str(path), data, row_reader("ner", data, labelled=False))
    assert [own.where for own in caught.value.mistakes] == [f"{path}:1", f"{path}:3"]
    with pytest.raises(UserError, match=r"input: .*none.jsonl: can't be read"):
        read_file(str(tmp_path / "none.jsonl"), data, row_reader("ner", data, labelled=False))


def test_splits_without_labels_have_none_to_learn(tmp_path: Path) -> None:
    file = str(write_jsonl(tmp_path / "x.jsonl", [GIVEN["classification"]]))
    data = DataConfig(train=file, validation=file, test=file)
    corpus = read_splits(data, row_reader("classification", data, labelled=False))
    assert corpus.labels == ()
    assert corpus.notes == ()


@pytest.mark.parametrize("task", GIVEN)
@pytest.mark.parametrize("labelled", [True, False])
def test_rows_that_moved_are_still_the_same(tmp_path: Path, task: str, labelled: bool) -> None:
    """Runs that go on compare what `repr` says of rows; where they stand may have changed."""
    said = []
    for name in ("a.jsonl", "b.jsonl"):
        path = write_jsonl(tmp_path / name, [GIVEN[task] | LABELS[task]])
        data = DataConfig()
        said.append(repr(read_file(str(path), data, row_reader(task, data, labelled))))
    assert said[0] == said[1]
    assert str(tmp_path) not in said[0]
