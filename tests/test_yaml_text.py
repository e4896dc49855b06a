"""Plain values of YAML: numbers are those of YAML 1.2, as other tools and JSON read them."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tsarch.yaml_text import read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-007", -7),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b11", 3),
        ("1_000", 1000),
        ("1e-4", 1e-4),
        ("1_0.5", 10.5),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("0o9", "0o9"),
        ("-", None),
        ("_1", "_1"),
        ("yes", True),
        ("~", None),
    ],
)
def test_plain_values(text, value):
    found = read_yaml(text) if text != "-" else None
    assert found == value
    assert type(found) is type(value)


@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.text("01:_.eox+-", max_size=5)))
def test_what_was_written_is_read_again(value):
    if not isinstance(value, int) or abs(value) < 2**900:
        assert read_yaml(write_yaml({"own": value})) == {"own": value}


@pytest.mark.parametrize("text", ["1e-4", "1e4", "0o17", "010", "1:30", "yes", "1_0", ".inf"])
def test_texts_that_look_like_numbers_stay_texts(text):
    assert read_yaml(write_yaml({text: text})) == {text: text}
    assert yaml.safe_load(write_yaml({text: text})) == {text: text}
