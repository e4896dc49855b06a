"""The config: shipped files load, mistakes are all named with the nearest right key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import ROOT, tiny_raw
from tsarch.config import Config
from tsarch.config_loading import (
    columns_of,
    config_schema,
    dump_config,
    load_config,
    parse_config,
)
from tsarch.errors import UserError
from tsarch.task_names import TASKS

SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


def mistakes_of(raw: dict, overrides: tuple[str, ...] = (), tmp_path: Path | None = None):
    def load() -> None:
        if tmp_path is None:
            parse_config(raw, "c.yaml")
        else:
            load_config(tmp_path / "c.yaml", overrides)

    if tmp_path is not None:
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError) as caught:
        load()
    return [str(m) for m in caught.value.mistakes]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_configs_load_and_fit_the_schema(path):
    config = load_config(path)
    assert Path(config.data.train).is_file()
    jsonschema.validate(yaml.safe_load(dump_config(config)), Config.model_json_schema())
    first = path.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=schema.json"


def test_there_are_shipped_configs():
    assert {p.name for p in SHIPPED} >= {"quickstart.yaml", "bert-large-2-nodes.yaml"}


def test_the_schema_for_editors_is_current():
    assert (ROOT / "configs" / "schema.json").read_text() == config_schema(), "run: make schema"


def test_every_field_is_documented():
    schema = json.loads(config_schema())
    for name, section in [("Config", schema), *schema["$defs"].items()]:
        for field, value in section["properties"].items():
            assert value.get("description"), f"{name}.{field}"


def test_dump_and_load_are_inverse(tmp_path):
    config = parse_config(tiny_raw(tmp_path), "tiny")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_all_mistakes_at_once_with_the_nearest_key(tmp_path):
    raw = tiny_raw(tmp_path, schedule={"epoch": 3}, student={"max_tokens": "many"})
    raw["optimiser"] = {}
    texts = mistakes_of(raw)
    assert len(texts) == 3
    assert any("schedule.epoch: is not a key. Did you mean `schedule.epochs`?" in t for t in texts)
    assert any("optimiser: is not a key. Did you mean `optimizer`?" in t for t in texts)
    assert any("student.max_tokens" in t and "'many'" in t for t in texts)


def test_columns_are_those_of_the_task(tmp_path):
    raw = tiny_raw(tmp_path, schedule={"epoch": 3}, task={"name": "qa"})
    raw["data"]["columns"] = {"tags": "t", "contxt": "x", "zzz": "x", "id": 5.5, "question": "q"}
    assert mistakes_of(raw) == [
        "c.yaml: data.columns.id: Input should be a valid string (given: 5.5). "
        "YAML reads a number there: for a text put it in quotes.",
        "c.yaml: schedule.epoch: is not a key. Did you mean `schedule.epochs`?",
        "c.yaml: data.columns.tags: is a column of `ner`, not of `qa`. "
        "Columns of `qa`: id, context, question, answers.",
        "c.yaml: data.columns.contxt: is not a key. Did you mean `data.columns.context`?",
        "c.yaml: data.columns.zzz: is not a key. Columns of `qa`: id, context, question, answers.",
    ]


def test_columns_are_complete_once_the_config_is_read(tmp_path):
    raw = tiny_raw(tmp_path)
    raw["data"]["columns"] = {"tokens": "words"}
    columns = parse_config(raw, "c.yaml").data.columns
    assert columns == {"doc_id": "doc_id", "sent_id": "sent_id", "tokens": "words", "tags": "tags"}


@pytest.mark.parametrize("task", TASKS)
def test_editors_know_the_columns_of_every_task(task, tmp_path):
    schema = json.loads(config_schema())
    for name, field in columns_of(task).model_fields.items():
        kinds = schema["$defs"]["DataConfig"]["properties"]["columns"]["anyOf"]
        sections = [schema["$defs"][kind["$ref"].rpartition("/")[2]] for kind in kinds]
        texts = [
            own["properties"][name]["description"] for own in sections if name in own["properties"]
        ]
        assert " ".join(field.description.split()) in [" ".join(text.split()) for text in texts]
    raw = tiny_raw(tmp_path)
    raw["data"]["columns"] = columns_of(task)().model_dump()
    jsonschema.validate(raw, schema)
    raw["data"]["columns"] = {"tokens": "a", "answers": "b"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, schema)


def test_a_key_in_the_wrong_section_is_pointed_home(tmp_path):
    texts = mistakes_of(tiny_raw(tmp_path, run={"batch_tokens": 3}))
    assert any("Did you mean `data.batch_tokens`?" in t for t in texts)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"student": {"max_tokens": 100}}, "student.max_tokens (100) must not exceed"),
        ({"data": {"batch_tokens": 50}}, "data.batch_tokens (50) must be at least"),
        ({"teacher": {"model": "x"}}, "give either `model` or `config`"),
        ({"student": {"model": "x"}}, "give one of `model`, `config`, `layers`"),
        ({"student": {"layers": [0, 0]}}, "each only once"),
        ({"data": {"validation": None}}, "needs data.validation and data.test"),
        ({"data": {"hub": "conll"}}, "either data.train"),
        ({"topology": {"teacher": {"zero_stage": 4}}}, "topology.teacher.zero_stage"),
        (
            {"topology": {"auto": True, "teacher": {"replicas": 1}, "student": {"threads": 2}}},
            "topology: `auto` chooses the replicas and threads of both stages, so "
            "`teacher.replicas` and `student.threads` can't be given too",
        ),
    ],
)
def test_impossible_combinations(tmp_path, sections, expected):
    assert any(expected in text for text in mistakes_of(tiny_raw(tmp_path, **sections)))


def test_overrides(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tiny_raw(tmp_path)))
    config = load_config(
        tmp_path / "c.yaml",
        ["schedule.epochs=7", "optimizer.clip_norm=1e-3", "topology.teacher.replicas=2"],
    )
    assert config.schedule.epochs == 7
    assert config.optimizer.clip_norm == 1e-3
    assert config.topology.teacher.replicas == 2
    texts = mistakes_of(tiny_raw(tmp_path), ("nonsense", "run.name.x=1", "a=[1"), tmp_path)
    assert len(texts) == 3
    assert "not of the form key=value" in texts[0]


def test_topology_auto_in_one_word_or_as_a_key(tmp_path):
    raw = tiny_raw(tmp_path)
    keys = {"auto": True, "device": "cpu", "teacher": {"zero_stage": 3}}
    for section in ("auto", {"auto": True}, keys):
        raw["topology"] = section
        assert parse_config(raw, "c.yaml").topology.auto
        jsonschema.validate(raw, Config.model_json_schema())
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tiny_raw(tmp_path)))
    for override in ("topology=auto", "topology.auto=true"):
        config = load_config(tmp_path / "c.yaml", [override])
        assert config.topology.auto
    assert config.topology.cpus_per_rank == 0.5  # `topology.auto` leaves the section's other keys
    raw["topology"] = "automatic"
    assert mistakes_of(raw) == [
        "c.yaml: topology: must be a section, or `auto` (given: 'automatic')."
    ]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, Config.model_json_schema())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "is not valid YAML"),
        ("- 1", "must hold sections"),
        ("run: {}\nrun: {}", "key given twice: run"),
    ],
)
def test_broken_files(tmp_path, text, expected):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=expected):
        load_config(tmp_path / "c.yaml")


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(tmp_path / "c.yaml")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*Config.model_fields, "x"]), json_values))
def test_any_mapping_is_a_config_or_a_list_of_mistakes(raw):
    outcome = None
    try:
        outcome = parse_config(raw, "fuzz")
    except UserError as error:
        outcome = error.mistakes
    assert outcome


def test_the_config_imports_no_torch():
    code = (
        "import sys; from tsarch.config_loading import config_schema, load_config;"
        "load_config('configs/qa.yaml'), config_schema();"
        "sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
