"""Data files that nobody should write: all is read, or every mistake named with file and line."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzzing import bytes_changed, few, many, time_limit
from tests.helpers import QUICKSTART_MODEL, ROOT, tiny_raw
from tsarch.blueprint import resolve
from tsarch.config import Config
from tsarch.config_loading import parse_config
from tsarch.errors import UserError
from tsarch.prepare import prepare_data

FOLDERS = {
    "ner": "wikigold",
    "classification": "csabstruct",
    "relation": "semeval",
    "ranking": "squadshifts_ranking",
    "multiple_choice": "wordnet",
    "qa": "squadshifts",
    "translation": "tatoeba",
    "summarization": "scitldr",
    "dialogue": "sgd",
    "code": "python_code",
}
WHOLE_FILE = (
    "is empty|has no rows|has no column|can't be read|has tags in columns|is no text|is an object"
    "|numbers only for words|one word in each|nothing to learn"
)
DEEP = "[" * 900 + "]" * 900
ODD = [
    *(None, True, False, 0, 1, -1, 7, 10**400, 1.5, float("nan"), float("inf"), "", " ", "7", "O"),
    *("\x00", "\ud800", "\ufeff", "\u2028", "\r\n", "B-", "I-X", "B-X", "é\u0301", "x" * 10**6),
    *("9" * 5000, "[1, 2]", '{"text": [], "answer_start": []}', DEEP, "[/b]", "NA", "²", "٣"),
    *([], {}, [[]], [None], [0, 1], [1, 0], [0, 10**9], [-1, 2], [True, True], [0.0, 1.0]),
    ["0", "1"],
    *(["a"], ["a", 1], ["a", None], ["", ""], {"a": [None]}, {"text": ["x"], "answer_start": [0]}),
    *({"text": "x", "answer_start": 0}, {"text": [None], "answer_start": [None]}, ["x"] * 5000),
    {"text": ["x"], "answer_start": [-1]},
    {"text": ["x"], "answer_start": [10**30]},
    {"text": [], "answer_start": [0]},
]
LINES = [
    *(b"", b"null", b"[]", b"{}", b"1", b'"x"', b"{", b'{"a": NaN}', b"\xff", b"\x00", b"\xef\xbb"),
    *(b"\xed\xa0\x80", b"\r", b"\r\n", b"[" * 10**5, b'{"a":' * 10**5, b"9" * 5000, b"x" * 10**6),
    *(b"\xe2\x80\xa8", b"O", b"a O", b"a\tB-X\tI-Y", b"-DOCSTART-", b"# newdoc", b'"', b'"a'),
    *(b",,,,,,,,,,", b"\t\t", b'"a""b",c', b"%PDF-1.4", b"PK\x03\x04", b"PAR1", b"\x1f\x8b"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the files; relative paths would lead there."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def sound_rows(task: str) -> list[dict[str, Any]]:
    lines = (ROOT / "configs" / FOLDERS[task] / "train.jsonl").read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines[:10]]


ROWS = {task: sound_rows(task) for task in FOLDERS}


def config_for(base: Path, task: str, files: dict[str, str], kind: str) -> Config:
    raw = tiny_raw(base, task={"name": task}) if not (base / "train.jsonl").exists() else None
    raw = raw or json.loads((base / "raw.json").read_text())
    (base / "raw.json").write_text(json.dumps(raw))
    raw["task"] = {"name": task}
    raw["data"] |= {**files, "format": kind, "tokenizer": QUICKSTART_MODEL}
    return parse_config(raw, "fuzz")


def judge(base: Path, task: str, content: bytes, kind: str, split: str) -> bool:
    """Read the three splits, one of which has `content`; whether they were sound."""
    sound = base / f"{task}.jsonl"
    if not sound.exists():
        text = "".join(json.dumps(row) + "\n" for row in ROWS[task])
        sound.write_text(text, encoding="utf-8")
        for other in ("csv", "parquet", "conll"):
            (base / f"{task}.{other}").write_bytes(as_file(ROWS[task], other, task))
    (base / f"odd.{kind}").write_bytes(content)
    splits = dict.fromkeys(("train", "validation", "test"), str(base / f"{task}.{kind}"))
    splits[split] = str(base / f"odd.{kind}")
    config = config_for(base, task, splits, kind)
    try:
        with time_limit():
            prepare_data(resolve(config))
    except UserError as error:
        check_places(error, base, kind)
        return False
    finally:
        assert not (base / "run").exists()
    return True


def check_places(error: UserError, base: Path, kind: str) -> None:
    """Every message says something, and where: the file and, if it is a row's, the line."""
    for mistake in error.mistakes:
        assert mistake.what.strip()
        assert len(str(mistake)) < 3000, str(mistake)[:1500]
        if mistake.where == "…":
            continue
        assert str(base) in mistake.where, mistake
        whole_file = re.search(WHOLE_FILE, mistake.what)
        place = r":row \d+$" if kind == "parquet" else r":(item )?\d+$"
        assert whole_file or re.search(place, mistake.where), mistake


def as_file(rows: list[dict[str, Any]], kind: str, task: str) -> bytes:
    """Rows in a format, as far as it can hold them."""
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    names = list(dict.fromkeys(name for row in rows for name in row))
    if kind == "csv":
        out = io.StringIO(newline="")
        writer = csv.writer(out)
        writer.writerow(names)
        for row in rows:
            writer.writerow([_cell(row[name]) if name in row else "" for name in names])
        return out.getvalue().encode("utf-8", "replace")
    if kind == "conll":
        pairs = [zip(_list(row.get("tokens")), _list(row.get("tags"))) for row in rows]
        sentences = ("\n".join(f"{a} {b}" for a, b in own) for own in pairs)
        return "\n\n".join(sentences).encode("utf-8", "replace")
    out_bytes = io.BytesIO()
    table = pa.table({name: _column(rows, name) for name in names})
    try:
        pa.parquet.write_table(table, out_bytes)
    except pa.ArrowException:  # such as structs without fields
        return b"PAR1"
    return out_bytes.getvalue()


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _column(rows: list[dict[str, Any]], name: str) -> Any:
    values = [row.get(name) for row in rows]
    try:
        return pa.array(values)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return pa.array([json.dumps(value) for value in values])


tasks = st.sampled_from(sorted(FOLDERS))
splits = st.sampled_from(["train", "test"])
odd = st.one_of(
    st.sampled_from(ODD),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.recursive(st.none() | st.text(max_size=2), lambda inner: st.lists(inner, max_size=3)),
)


def changed_rows(task: str, data: st.DataObject) -> list[dict[str, Any]]:
    """Sound rows, of which a few have a value changed, removed, doubled or put inside a list."""
    rows: list[dict[str, Any]] = json.loads(json.dumps(ROWS[task]))
    for _ in range(data.draw(st.integers(1, 3))):
        row = data.draw(st.sampled_from(rows))
        key = data.draw(st.sampled_from(sorted(row) or ["x"]))
        match data.draw(st.sampled_from(["put", "put", "put", "item", "drop", "twice", "column"])):
            case "put":
                row[key] = data.draw(odd)
            case "item" if isinstance(row.get(key), list) and row[key]:
                row[key][data.draw(st.integers(0, len(row[key]) - 1))] = data.draw(odd)
            case "drop":
                row.pop(key, None)
            case "twice":
                rows.append(json.loads(json.dumps(row)))
            case _:
                value = data.draw(odd)
                for other in rows:
                    other[key] = value
    return rows


def check_rows(base: Path, task: str, kind: str, split: str, data: st.DataObject) -> bool:
    return judge(base, task, as_file(changed_rows(task, data), kind, task), kind, split)


def check_bytes(base: Path, task: str, kind: str, split: str, data: st.DataObject) -> bool:
    """A sound file with bytes cut, flipped or put in."""
    content = as_file(ROWS[task], kind, task)
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(content)))
        match data.draw(st.sampled_from(["cut", "flip", "line", "line", "crlf", "bytes", "bom"])):
            case "line":
                start = content.rfind(b"\n", 0, at) + 1
                line = data.draw(st.sampled_from(LINES)) + b"\n"
                content = content[:start] + line + content[start:]
            case "crlf":
                ends = data.draw(st.sampled_from([b"\r\n", b"\r", b"\n\n"]))
                content = content.replace(b"\n", ends)
            case "bom":
                content = b"\xef\xbb\xbf" + content
            case how:
                content = bytes_changed(content, at, how, data)
    return judge(base, task, content, kind, split)


@few(20)
@given(task=tasks, split=splits, data=st.data())
def test_rows_quick(base, task, split, data):
    check_rows(base, task, "jsonl", split, data)


@few(15)
@given(task=tasks, split=splits, data=st.data())
def test_bytes_quick(base, task, split, data):
    check_bytes(base, task, "jsonl", split, data)


@pytest.mark.slow
@many(500)
@given(task=tasks, split=splits, data=st.data())
def test_rows(base, task, split, data):
    check_rows(base, task, "jsonl", split, data)


@pytest.mark.slow
@many(300)
@given(task=tasks, split=splits, data=st.data())
def test_bytes(base, task, split, data):
    check_bytes(base, task, "jsonl", split, data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "parquet", "conll"])
@many(60)
@given(task=tasks, split=splits, data=st.data(), rows=st.booleans())
def test_other_formats(base, kind, task, split, data, rows):
    task = "ner" if kind == "conll" else task
    (check_rows if rows else check_bytes)(base, task, kind, split, data)
