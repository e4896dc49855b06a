"""`--set`: a text is what was typed; what wants a number, a list or a section is read as YAML."""

from __future__ import annotations

import re
from types import NoneType
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import tiny_raw
from tsarch.config import Config
from tsarch.config_loading import _keys, columns_of, load_config, parse_config
from tsarch.errors import UserError
from tsarch.launch.cli import load_run
from tsarch.overrides import kinds_of, override, typed_value
from tsarch.task_names import TASKS

COLUMNS = [f"data.columns.{name}" for task in TASKS for name in columns_of(task).model_fields]
TEXT_KEYS = [key for key in [*_keys(Config), *COLUMNS] if str in kinds_of(key)]
OTHER_KEYS = [key for key in _keys(Config) if not kinds_of(key) & {str, Any}]
TYPED = [
    *("run #7", "#7", "Sentence #", "a: b", "a: b: c", "007", "no", "Yes", "on", "2026-01-01"),
    *("1e3", "12:30", "[x", "[a]", "{a}", "*a", "&a", "!tag x", "%x", "@x", "`x`", "- x", "? x"),
    *("|", ">", " x ", "x ", "a\tb", "0x1F", "1_000", ".5", "=", "Größe: 5 #", "C:\\x", "it's"),
]


def value_of(key: str, text: str) -> Any:
    """What `--set` makes of a text."""
    raw: dict[str, Any] = {}
    assert override(raw, f"{key}={text}") is None
    found: Any = raw
    for name in key.split("."):
        found = found[name]
    return found


def test_the_keys_that_want_texts_are_known():
    assert {"run.folder", "run.name", "data.train", "data.hub", "data.tokenizer"} <= {*TEXT_KEYS}
    assert {"task.source_prefix", "checkpoint.folder", "teacher.model", "precision"} <= {*TEXT_KEYS}
    assert {"data.columns.tokens", "data.columns.sent_id", "data.delimiter"} <= {*TEXT_KEYS}
    assert not {"run.seed", "schedule.epochs", "student.depths", "run.trace"} & {*TEXT_KEYS}


@pytest.mark.parametrize("key", TEXT_KEYS)
def test_a_text_is_what_was_typed(key):
    kinds = kinds_of(key)
    for text in TYPED:
        is_section = text[0] in "[-{?" or ": " in text
        if is_section and kinds & {dict, list}:  # YAML of that kind is wanted too
            continue
        if int in kinds and re.fullmatch(r"\d+|0x[0-9A-F]+|\d_\d+|12:30", text):  # so are numbers
            continue
        assert value_of(key, text) == text
    assert value_of(key, '"a\\tb #"') == "a\tb #"
    assert value_of(key, "'2026-01-01'") == "2026-01-01"
    nothing = None if NoneType in kinds else "null"
    assert value_of(key, "null") == nothing


@given(st.sampled_from(["run.folder", "task.source_prefix", "data.columns.tokens"]), st.text())
def test_any_text_is_what_was_typed(key, text):
    if text.strip().lower() not in ("", "~", "null") and text.lstrip()[:1] not in ("'", '"'):
        assert value_of(key, text) == text


@pytest.mark.parametrize("key", OTHER_KEYS)
def test_what_wants_no_text_is_yaml(key):
    assert value_of(key, "1e-4 # a comment") == 1e-4
    assert value_of(key, "no") is False
    assert value_of(key, "[0, 2]") == [0, 2]
    assert value_of(key, "null") is None


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("teacher.config.hidden_size", "32", 32),
        ("teacher.config.tie_word_embeddings", "false", False),
        ("teacher.config.model_type", "run #7", "run #7"),
        ("teacher.config.name", "2026-01-01", "2026-01-01"),
        ("teacher.deepspeed.zero_optimization", "{stage: 1}", {"stage": 1}),
        ("loss.label_weights", "balanced", "balanced"),
        ("data.train", "[a.en, a.de]", ["a.en", "a.de"]),
        ("data.train", "a #1.jsonl", "a #1.jsonl"),
        ("loss.label_weights", "{PER: 2.0}", {"PER": 2.0}),
        ("loss.label_weights.PER", "2", 2),
        ("topology", "auto", "auto"),
        ("data.hub_config", "", None),
        ("task.source_prefix", "", ""),
        ("no.such.key", "a #b", "a #b"),
    ],
)
def test_where_several_kinds_are_taken_yaml_of_them_is(key, text, value):
    assert value_of(key, text) == value


def test_a_section_that_is_no_yaml_is_a_mistake():
    with pytest.raises(ValueError, match="flow sequence"):
        typed_value("[1", kinds_of("student.depths"))
    assert "not valid YAML" in str(override({}, "teacher.config.x=[1"))


def test_a_run_gets_the_folder_and_columns_that_were_typed(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(tiny_raw(tmp_path)), encoding="utf-8")
    typed = [f"run.folder={tmp_path}/run #7", "data.columns.sent_id=Sentence #"]
    config = load_config(file, typed)
    assert config.run_folder == f"{tmp_path}/run #7"
    assert config.data.columns["sent_id"] == "Sentence #"
    folder = tmp_path / "2026: it's #1"
    folder.mkdir()
    (folder / "config.yaml").write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    assert load_run(folder, [], trace=True, resume=True).run_folder == str(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2026-01-01", "YAML reads a date there: for a text put it in quotes."),
        ("no", "YAML reads yes or no there: for a text put it in quotes."),
        ("007", "YAML reads a number there: for a text put it in quotes."),
        ("[x]", ""),
    ],
)
def test_a_file_in_which_yaml_makes_something_else_of_a_text_says_so(tmp_path, text, said):
    raw = tiny_raw(tmp_path)
    raw["data"]["hub_config"] = yaml.safe_load(text)
    raw["precision"] = yaml.safe_load(text)
    with pytest.raises(UserError) as caught:
        parse_config(raw, "c.yaml")
    hints = {mistake.where: mistake.hint for mistake in caught.value.mistakes}
    assert hints == {"c.yaml: data.hub_config": said, "c.yaml: precision": said}
