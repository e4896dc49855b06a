"""Rows of every task are written and read again as they are, and split as what they say demands."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import write_jsonl
from tests.test_sizes import ROWS
from tsarch.config import DataConfig
from tsarch.config_loading import columns_of
from tsarch.data.corpus import read_file, read_rows
from tsarch.data.row_digest import rows_digest
from tsarch.errors import UserError
from tsarch.refit.mixing import Mix, OldRows, mix
from tsarch.refit.rows import Document, PlainRows, documents_of
from tsarch.tasks.registry import row_reader


def read(task: str, raw: list[dict[str, Any]]) -> tuple[Any, ...]:
    return read_rows(raw, row_reader(task, DataConfig()))


def sentences(numbers: range, document: str | None = None) -> list[dict[str, Any]]:
    rows = [
        {"tokens": ["Ann", "saw", f"town{n}"], "tags": ["B-PER", "O", "B-LOC"]} for n in numbers
    ]
    return rows if document is None else [{"doc_id": document, **row} for row in rows]


def documents(raw: list[dict[str, Any]], prefix: str = "new-") -> list[Document]:
    return documents_of(read("ner", raw), prefix)


def old(**parts: Any) -> OldRows:
    nothing: dict[str, Any] = {"train": (), "validation": (), "test": ()}
    return OldRows(**{**nothing, "held_out": frozenset(), "trained": frozenset(), **parts})


def mixed(raw: list[dict[str, Any]], known: OldRows | None = None, **options: Any) -> Mix:
    settings: dict[str, Any] = {"held_out": 0.2, "replay": 0.5, "seed": "0 v2", "source": "new"}
    return mix(documents(raw), known or old(), PlainRows("ner"), **{**settings, **options})


def keys(found: tuple[Document, ...]) -> set[str]:
    return PlainRows("ner").keys(row for own in found for row in own.rows)


@pytest.mark.parametrize("task", ROWS)
def test_rows_of_every_task_are_read_again_as_they_are(tmp_path, task):
    row, *_ = ROWS[task]
    more = {**row, "id": "q2"} if task == "qa" else row
    rows = read(task, [row, more])
    plain = PlainRows(task)
    plain.write(tmp_path / "rows.jsonl", documents_of(rows, "v2-"))
    again = plain.read(tmp_path / "rows.jsonl")
    assert again == rows or [repr(own) for own in again] == [repr(own) for own in rows]
    assert rows_digest(again) == rows_digest(rows)
    assert plain.keys(again) == plain.keys(rows)


def test_a_source_is_all_that_is_read_of_it():
    row = {"description": "The sum.", "start": "def f():", "code": "return 1"}
    other = {**row, "description": "The product."}
    none = {"start": row["start"], "code": row["code"]}
    assert len(PlainRows("code").keys(read("code", [row, other, none]))) == 3
    assert len(PlainRows("code").keys(read("code", [row, {**row, "code": "x"}]))) == 1
    asks = {"source": "a", "target": "b", "control": "short"}
    rows = read("translation", [asks, {**asks, "control": "long"}])
    assert len(PlainRows("translation").keys(rows)) == 2
    found = {"query": "a", "passage": "b", "relevance": 1, "query_id": "1"}
    assert len(PlainRows("ranking").keys(read("ranking", [found, {**found, "query_id": "2"}]))) == 1


def test_a_whole_file_of_several_documents_keeps_them_apart(tmp_path):
    rows = read(
        "ner", [*sentences(range(3), "b"), *sentences(range(3, 5), "a"), *sentences(range(1))]
    )
    plain = PlainRows("ner")
    plain.write(tmp_path / "rows.jsonl", documents_of(rows, "v2-"))
    again = plain.read(tmp_path / "rows.jsonl")
    assert [own.origin.doc_id for own in again] == ["v2-0"] * 3 + ["v2-1"] * 2 + ["v2-2"]
    assert rows_digest(again) == rows_digest(rows)


def test_a_file_of_one_word_rows_stays_what_it_is(tmp_path):
    raw = [{"tokens": ["Ann"], "tags": ["B-PER"]}, {"tokens": ["sat"], "tags": ["O"]}]
    rows = read_rows(raw, row_reader("ner", DataConfig(odd_words="keep")))
    plain = PlainRows("ner")
    plain.write(tmp_path / "rows.jsonl", documents_of(rows, "v2-"))
    assert [own.words for own in plain.read(tmp_path / "rows.jsonl")] == [["Ann"], ["sat"]]


def test_a_key_is_of_the_input_alone(tmp_path):
    plain = PlainRows("ner")
    other = [{**row, "tags": ["O", "O", "O"]} for row in sentences(range(4), "x")]
    assert plain.keys(read("ner", other)) == plain.keys(read("ner", sentences(range(4))))
    columns = columns_of("ner")(tokens="words").model_dump()
    data = DataConfig().model_copy(update={"columns": columns})
    named = [{"words": row["tokens"], "tags": row["tags"]} for row in sentences(range(4))]
    file = write_jsonl(tmp_path / "words.jsonl", named)
    found = read_file(str(file), data, row_reader("ner", data))
    assert plain.keys(found) == plain.keys(read("ner", sentences(range(4))))


def test_an_id_of_a_question_is_no_part_of_its_key():
    row, *_ = ROWS["qa"]
    plain = PlainRows("qa")
    assert plain.keys(read("qa", [row])) == plain.keys(read("qa", [{**row, "id": "other"}]))


def test_every_row_has_one_side_and_the_same_whatever_stands_beside_it():
    whole = mixed(sentences(range(400)))
    held, trained = keys(whole.held_out), keys(whole.new_train)
    assert 50 < len(held) < 110
    assert 20 < len(keys(whole.new_validation)) < 70
    assert len(held) + len(trained) + len(keys(whole.new_validation)) == 400
    part = mixed(sentences(range(390, 100, -1)))
    assert keys(part.held_out) <= held
    assert keys(part.new_train) <= trained


def test_a_document_has_one_side():
    raw = [row for n in range(40) for row in sentences(range(5 * n, 5 * n + 5), f"d{n}")]
    own = mixed(raw)
    assert own.held_out
    assert {len(d.rows) for d in (*own.held_out, *own.new_train)} == {5}


def test_what_was_held_out_is_never_trained_on_and_the_reverse():
    first = mixed(sentences(range(200)))
    held, trained = keys(first.held_out), keys(first.new_train)
    # The same sentences come again in documents, whose sides are others.
    raw = [row for n in range(20) for row in sentences(range(10 * n, 10 * n + 10), f"d{n}")]
    known = old(held_out=frozenset(held), trained=frozenset(trained))
    second = mixed([*raw, *sentences(range(500, 600))], known)
    assert not keys(second.new_train) & held
    assert not keys(second.held_out) & trained
    assert any("not trained on" in note for note in second.notes)
    assert any("not held out" in note for note in second.notes)


def test_nothing_that_is_measured_is_trained_on_or_replayed():
    test = documents(sentences(range(50)), "test-")
    train = documents(sentences(range(40, 300)), "train-")
    own = mixed(sentences(range(200)), old(train=train, test=test), replay=1.0)
    measured = keys(own.held_out) | keys(tuple(test))
    assert not keys(own.new_train) & measured
    assert not keys(own.replayed) & measured
    assert keys(own.replayed)


def test_the_replayed_share_is_drawn_by_the_seed():
    train = documents(sentences(range(1000, 1200)), "train-")
    draws = [
        mixed(sentences(range(50)), old(train=train), replay=0.3, seed=seed).replayed
        for seed in ("0 v2", "0 v2", "0 v3")
    ]
    assert len(draws[0]) == 60
    assert draws[0] == draws[1] != draws[2]
    numbers = [int(own.name.removeprefix("train-")) for own in draws[0]]
    assert all(a < b for a, b in pairwise(numbers))
    assert mixed(sentences(range(50)), old(train=train), replay=0.0).replayed == ()


def test_of_few_documents_one_is_held_out_and_of_one_none_can_be():
    for number in range(2, 9):
        own = mixed(sentences(range(number)), held_out=0.01)
        assert len(own.held_out) == 1
        assert own.new_train
    with pytest.raises(UserError, match="can't be trained on and held out"):
        mixed(sentences(range(1)))
    assert mixed(sentences(range(1)), held_out=0.0).new_train


def test_rows_that_are_all_measured_elsewhere_are_refused():
    test = documents(sentences(range(50)), "test-")
    with pytest.raises(UserError, match="no row to train on"):
        mixed(sentences(range(50)), old(test=test))
    trained = frozenset(keys(tuple(documents(sentences(range(50))))))
    with pytest.raises(UserError, match="no row to hold out"):
        mixed(sentences(range(50)), old(trained=trained))


def test_an_empty_file_has_no_rows(tmp_path: Path):
    plain = PlainRows("ner")
    plain.write(tmp_path / "none.jsonl", [])
    assert plain.read(tmp_path / "none.jsonl") == ()
    assert plain.read(tmp_path / "absent.jsonl") == ()
