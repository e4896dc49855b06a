"""Texts that obey: what a row asks for stands before its source, and is measured."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import tsarch
from tests.equal_losses import check_equal_losses
from tests.generative_configs import generative_raw, rows, tokenizer_folder
from tests.helpers import packing_spec, write_jsonl
from tsarch.blueprint import resolve
from tsarch.config import MODES, ControlConfig, DataConfig, TaskConfig
from tsarch.config_loading import parse_config
from tsarch.data.control import Control
from tsarch.data.corpus import read_rows
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.source_target import SourceTarget
from tsarch.data.tokenizer import load_tokenizer
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.prepare import prepare_data
from tsarch.run.saved_run import evaluate_run
from tsarch.tasks.base import is_writing
from tsarch.tasks.registry import make_task, row_reader

LENGTHS = {"num_words": {"short": [1, 2], "long": [3, 9]}}


def control(**rule: Any) -> Control:
    return Control(ControlConfig.model_validate_json(json.dumps(rule)))


def read(*own: dict[str, Any]) -> tuple[SourceTarget, ...]:
    return read_rows(list(own), row_reader("translation", DataConfig()))


def test_rules_look_at_the_text_alone() -> None:
    lengths = control(**LENGTHS)
    assert lengths.is_obeyed("short", "a b")
    assert not lengths.is_obeyed("short", "a b c")
    assert not lengths.is_obeyed("long", "")
    assert lengths.is_obeyed("short", "旧船"), "letters without spaces are words"
    assert [lengths.of_target(own) for own in ("a", "a b c", "a " * 10)] == ["short", "long", None]
    kinds = control(patterns={"ask": r"\?$", "tell": r"[^?]$"})
    assert kinds.is_obeyed("ask", "Where?")
    assert kinds.of_target("There.") == "tell"
    words = control(contains=True)
    assert words.is_obeyed("New  York; ship", "The SHIP left new\nYork")
    assert not words.is_obeyed("New York; ships", "The ship left New York")
    assert words.of_target("The ship") is None


@pytest.mark.parametrize(
    ("asked", "text", "obeys"),
    [
        ("art", "A fresh start", False),
        ("art", "State-of-the-art.", True),
        ("20", "In 2020", False),
        ("C++", "C++17", True),  # what isn't a letter may stand before one
        ("AI", "使用AI技术", True),
        ("技", "使用技术", True),  # scripts without spaces have no ends of words
        ("e\u0301cole", "L'École est grande", True),  # an accent by itself, and within the letter
        ("Straße", "die STRASSE", True),
        ("; ship ;", "a ship", True),
    ],
)
def test_words_are_had_as_words(asked: str, text: str, obeys: bool) -> None:
    assert control(contains=True).is_obeyed(asked, text) is obeys


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("short", "short"),
        (["a b", "c"], "a b; c"),
        (3, "3"),
        (3.0, "3"),  # a column of whole numbers with empty cells, as pandas writes it
        (True, "true"),
        (" ", None),
        (None, None),
        (float("nan"), None),
        ([], None),
    ],
)
def test_a_control_is_read_from_its_column(value: Any, found: str | None) -> None:
    (row,) = read({"source": "a", "target": "b", "control": value})
    assert row.control == found
    raw = row_reader("translation", DataConfig()).raw(row)
    assert raw == {"source": "a", "target": "b"} | ({} if found is None else {"control": found})


@pytest.mark.parametrize("value", [1.5, 10**12, {"length": 3}, [3, 4], float("inf")])
def test_what_is_no_control_is_not_passed_over(value: Any) -> None:
    with pytest.raises(UserError, match=r"`control` is .*, not a text, a list of"):
        read({"source": "a", "target": "b", "control": value})


def packed(folder: Path, own: list[dict[str, Any]], rule: Control, labelled: bool = True) -> Any:
    tokens = RowTokenizer(load_tokenizer(str(tokenizer_folder(folder))), None, keep=False)
    reader = row_reader("translation", DataConfig(), labelled)
    spec = packing_spec(tokens, 40, 12, max_target_tokens=6, control=rule)
    split = reader.layout(spec, ()).pack(read_rows(own, reader))
    starts = split.context_offsets
    texts = [split.token_ids[a:b].tolist() for a, b in itertools.pairwise(starts)]
    return split, [tokens.tokenizer.decode(text).strip() for text in texts]


def test_it_stands_before_the_source_and_is_never_cut(tmp_path: Path) -> None:
    own = [
        {"source": "red tree", "target": "old house"},
        {"source": "red tree", "target": "old house", "control": "long"},
        {"source": "red tree " * 40, "target": "new"},
    ]
    split, texts = packed(tmp_path, own, control(**LENGTHS))
    assert [row.control for row in split.rows] == ["short", "long", "short"]
    assert texts[0].split() == ["short:", "red", "tree<end>", "old", "house"]
    assert texts[1].startswith("long: red tree")
    assert texts[2].startswith("short: red tree red")
    assert [cut.rows for cut in split.cuts] == [(2,)]
    firsts = split.token_ids[split.windows[:, 0]]
    assert (firsts == firsts[0]).all(), "the student reads the target alone"


def test_rows_to_be_answered_ask_or_not(tmp_path: Path) -> None:
    own = [{"source": "red tree"}, {"source": "red tree", "control": "long"}]
    _, texts = packed(tmp_path, own, control(**LENGTHS, text="[{}]"), labelled=False)
    assert [text.split()[0] for text in texts] == ["red", "[long]"]
    with pytest.raises(UserError, match="has the control `wide`; task"):
        packed(tmp_path, [own[0] | {"control": "wide"}], control(**LENGTHS), labelled=False)
    many = {"source": "red", "target": "a", "control": "many words " * 9}
    with pytest.raises(UserError, match=r"has a control of .* no room is left"):
        packed(tmp_path, [many], control(contains=True))


def test_obedience_is_of_the_rows_that_ask() -> None:
    config = TaskConfig(name="translation", control=control(contains=True).config)
    task = make_task("translation", (), config)
    assert is_writing(task)
    own = read(
        {"source": "a", "target": "b", "control": "ship"},
        {"source": "a", "target": "b", "control": "tree"},
        {"source": "a", "target": "b"},
    )
    found = task.measured(["a ship", "a house", "b"], own)
    assert found["obedience"] == 1 / 2
    assert "obedience" not in task.measured(["b"], own[2:])
    plain = make_task("translation", ())
    assert is_writing(plain)
    assert set(plain.measured(["b"], own[:1])) == {"bleu", "chrf"}


def controlled(folder: Path, **sections: Any) -> dict[str, Any]:
    """A tiny run whose texts are as long as asked."""
    raw = generative_raw(folder, "translation", "llama", **sections)
    raw["task"] |= {"control": LENGTHS}
    return raw


@pytest.mark.slow
def test_a_run_measures_and_answers_what_is_asked(tmp_path: Path) -> None:
    sections = {"schedule": {"epochs": 4}, "topology": {"runner": "local"}}
    summary = run_training(parse_config(controlled(tmp_path, **sections), "tiny"))
    for when in ("before", "after"):
        assert all(0 <= summary[when][mode]["obedience"] <= 1 for mode in MODES)
    assert summary["samples"][0]["control"] in ("short", "long")
    assert "obedience" in (tmp_path / "run" / "report.html").read_text()
    again = evaluate_run(tmp_path / "run", "test").evaluation.metrics
    assert again["joint"]["obedience"] == summary["after"]["joint"]["obedience"]
    pair = tsarch.load(tmp_path / "run", device="cpu")
    asked = [{"source": "red house old", "control": own} for own in ("short", "long")]
    one, other = pair.predict(asked, "teacher")
    assert one.score != other.score, "the teacher reads the control"


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
def test_ranks_read_controls_too(tmp_path: Path, crews: Any) -> None:
    check_equal_losses(parse_config(controlled(tmp_path), "tiny"), (2, 1), crews, num_steps=3)


def test_splits_that_ask_for_nothing_are_refused(tmp_path: Path) -> None:
    raw = generative_raw(tmp_path, "translation", "llama")
    raw["task"]["control"] = {"contains": True}
    config = parse_config(raw, "tiny")
    with pytest.raises(UserError, match="the train split: no row has a control"):
        prepare_data(resolve(config))
    own = [{**row, "control": row["target"].split()[0]} for row in rows("translation", 4)]
    file = str(write_jsonl(tmp_path / "own.jsonl", own))
    raw["data"] |= dict.fromkeys(("train", "validation", "test"), file)
    assert (
        prepare_data(resolve(parse_config(raw, "tiny"))).splits["test"].rows[0].control
        == own[0]["control"]
    )


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ({}, "give one rule"),
        ({"contains": True, **LENGTHS}, "give one rule"),
        ({"contains": True, "text": "be"}, "`text` lacks `{}`"),
        ({"num_words": {"short": [3, 2]}}, "num_words.short: the least words"),
        ({"patterns": {"ask": "("}}, "is no regular expression"),
    ],
)
def test_rules_that_cannot_be_are_refused(tmp_path: Path, rule: dict[str, Any], what: str) -> None:
    raw = generative_raw(tmp_path, "translation", "llama")
    raw["task"]["control"] = rule
    with pytest.raises(UserError) as caught:
        parse_config(raw, "tiny")
    assert what in str(caught.value)


def test_only_written_texts_obey(tmp_path: Path) -> None:
    raw = generative_raw(tmp_path, "translation", "llama")
    raw["task"] = {"name": "classification", "control": {"contains": True}}
    with pytest.raises(UserError, match=r"task\.control is for tasks that write texts"):
        parse_config(raw, "tiny")
