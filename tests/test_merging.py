"""Splits that were packed apart are, put together, the split of all their rows."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from tests.helpers import QUICKSTART_MODEL, packing_spec
from tsarch.config import DataConfig
from tsarch.data.corpus import read_rows
from tsarch.data.merging import merged
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.tokenizer import load_tokenizer
from tsarch.records import Piece, Queries, TokenizedSplit
from tsarch.tasks.registry import row_reader

LONG = "the old ship left the harbour of Rome and never came back to it " * 9
ROWS: dict[str, list[dict[str, Any]]] = {
    "ner": [
        *({"tokens": LONG.split()[n:], "doc_id": f"d{n // 3}"} for n in range(9)),
        {"tokens": ["x" * 600, "ends"]},
    ],
    "classification": [{"text": LONG[n:], "doc_id": f"d{n // 2}"} for n in range(6)],
    "relation": [
        {"tokens": LONG.split()[: 5 * n], "head": [0, 1], "tail": [2, 4]} for n in range(1, 9)
    ],
    "qa": [
        {"id": str(n), "context": LONG[n:], "question": f"Who left {n} times?"} for n in range(5)
    ],
    "translation": [{"source": LONG[: 9 * n]} for n in range(1, 6)],
    "summarization": [{"document": LONG[: 100 * n]} for n in range(1, 6)],
    "dialogue": [{"history": ["hello there"] * n} for n in range(1, 6)],
    "code": [{"description": LONG[: 80 * n], "start": "def f():"} for n in range(5)],
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Piece | Queries):
        return all(same(own, vars(other)[name]) for name, own in vars(one).items())
    return one == other


@pytest.mark.parametrize(
    ("task", "query"),
    [*((task, "both") for task in ROWS), ("qa", "student"), ("relation", "student")],
)
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_together_are_the_whole(task, query, parts):
    reader = row_reader(task, DataConfig(), labelled=False)
    tokens = RowTokenizer(load_tokenizer(QUICKSTART_MODEL), None, keep=False)
    layout = reader.layout(packing_spec(tokens, 64, 40, query=query), ("O",))
    rows = read_rows(ROWS[task], reader)
    documents = list(dict.fromkeys(row.origin.doc_id for row in rows))
    shares = [set(documents[n::parts]) for n in range(parts)]
    groups = [tuple(row for row in rows if row.origin.doc_id in own) for own in shares]
    found = merged([layout.pack(own) for own in groups])
    whole = layout.pack(tuple(row for own in groups for row in own))
    for field in fields(TokenizedSplit):
        one, other = getattr(found, field.name), getattr(whole, field.name)
        if field.name == "cuts":  # one for each part, where the whole has one
            assert sum(cut.num_tokens for cut in one) == sum(cut.num_tokens for cut in other)
            assert {(c.what, r) for c in one for r in c.rows} == {
                (c.what, r) for c in other for r in c.rows
            }
        else:
            assert same(one, other), field.name
    assert len(found.rows) == len(rows)
