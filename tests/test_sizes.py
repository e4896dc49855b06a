"""Rows, words and labels of the data are counted as a person counts them, for every task."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers import QUICKSTART_MODEL, ROOT, packing_spec
from tsarch.config import DataConfig
from tsarch.data.corpus import read_rows
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.split_size import SplitSize
from tsarch.data.tokenizer import load_tokenizer
from tsarch.tasks.registry import row_reader

ROWS: dict[str, tuple[dict[str, Any], int, int]] = {
    "ner": ({"tokens": ["Ann", "sings", "."], "tags": ["B-PER", "O", "O"]}, 3, 3),
    "classification": ({"text": "Ann  sings in Rome, every day.", "label": "x"}, 6, 1),
    "relation": (
        {"tokens": ["Ann", "left", "Rome"], "head": [0, 1], "tail": [2, 3], "relation": "left"},
        3,
        1,
    ),
    "qa": (
        {
            "id": "q",
            "context": "Ann sings in Rome.",
            "question": "Who sings?",
            "answers": {"text": ["Ann", "Ann"], "answer_start": [0, 0]},
        },
        6,
        2,
    ),
    "ranking": ({"query": "Who sings?", "passage": "Ann sings in Rome.", "relevance": 1}, 6, 1),
    "multiple_choice": (
        {"question": "a cat is", "choices": ["a tool", "an animal"], "answer": 1},
        7,
        1,
    ),
    "translation": ({"source": "the old river", "target": "ancient fleuve"}, 5, 1),
    "summarization": (
        {"document": "a b c d", "summary": "a b", "references": ["a", "b c"]},
        9,
        3,
    ),
    "dialogue": ({"history": ["hello there", "hi"], "response": "how are you?"}, 6, 1),
    "code": ({"description": "The sum.", "start": "def f(a, b):", "code": "return a + b"}, 9, 1),
}


def size(task: str, rows: list[dict[str, Any]]) -> SplitSize:
    reader = row_reader(task, DataConfig())
    read = read_rows(rows, reader)
    labels = reader.labels(sorted({name for row in read for name, _ in reader.label_names(row)}))
    tokens = RowTokenizer(load_tokenizer(QUICKSTART_MODEL), None, keep=False)
    return SplitSize.of(reader.layout(packing_spec(tokens, 64, 40), labels).pack(read))


@pytest.mark.parametrize("task", ROWS)
def test_a_row_of_every_task_is_counted(task):
    row, words, labels = ROWS[task]
    found = size(task, [row])
    assert (found.rows, found.words, found.labels) == (1, words, labels)
    assert str(found).startswith(f"1 rows, {words} words, {labels} labels; ")


def test_letters_without_spaces_are_words():
    found = size("classification", [{"text": "旧帆船 came", "label": "x"}])
    assert found.words == 4


def test_the_words_of_a_file_are_those_that_it_has():
    lines = (ROOT / "configs/csabstruct/test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    found = size("classification", rows)
    assert found.rows == found.labels == len(rows)
    assert found.words == sum(len(row["text"].split()) for row in rows)
