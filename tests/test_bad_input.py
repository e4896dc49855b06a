"""What the fuzzers (`test_fuzz_*.py`) and a look at the code have found, one plain case each."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.fuzzing import command, stop_at_the_crew
from tests.helpers import tiny_raw, write_jsonl
from tests.test_cli import sentence
from tests.test_fuzz_configs import BOMB
from tests.test_fuzz_data import ROWS, as_file
from tsarch.checkpoint.manifest import Manifest
from tsarch.checkpoint.optimizer_state import saved_state
from tsarch.config import DataConfig
from tsarch.data.rows import Place
from tsarch.errors import UserError
from tsarch.tasks.relation import RelationReader
from tsarch.telling.json_files import JsonFiles
from tsarch.topology import Topology


def refused(tmp_path: Path, config: str | dict[str, Any], *more: str) -> str:
    """What is said of a config that can't start; no run folder is made."""
    text = config if isinstance(config, str) else yaml.safe_dump(config)
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    status, printed = command(["train", str(tmp_path / "c.yaml"), *more])
    assert status == 2, printed
    assert not (tmp_path / "run").exists()
    return " ".join(printed.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: !!int x", "'x' is not a valid int"),
        ("a: !!int ''", "'' is not a valid int"),
        ("a: !!float x", "'x' is not a valid float"),
        ("a: !!bool x", "'x' is not a valid bool"),
        ("a: !!timestamp x", "'x' is not a valid timestamp"),
        ("a: 2001-99-99", "'2001-99-99' is not a valid timestamp (month must be in 1..12)"),
        ("a: 0x_", "'0x_' is not a valid int"),
        ("data: 0x" + "f" * 5000, "is not a valid int (it is too large)"),
        ("a: " + "[" * 1000, "it is nested too deeply"),
        ("a: &x [*x]", "an anchor stands inside of what it names"),
        (BOMB, "has more than 100,000 values once its anchors are written out"),
    ],
)
def test_yaml_that_python_stumbles_over(tmp_path, text, expected):
    assert expected in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("schedule.epochs=!!int x", "--set schedule.epochs=!!int x: has a value that is not valid"),
        ('run.folder="a\\0b"', "run.folder: holds a character that no file can hold"),
        ('data.train="\\ud800"', "data.train: holds a character that no file can hold"),
        ("optimizer.teacher_learning_rate=.inf", "Input should be a finite number"),
        ("topology.timeout_s=1e300", "should be less than or equal to 10000000"),
        ("schedule.epochs=1000000000000", "should be less than or equal to 10000"),
        ("data.num_buckets=1000000000", "should be less than or equal to 1000"),
        ("run.name=..", "run.name: String should match pattern"),
        (f"run.folder={'a' * 300}", "File name too long"),
        ("run.folder=~nobody-here/x", "run folder: ~nobody-here/x: Could not determine home"),
        (f"data.tokenizer={'a' * 300}", "data.tokenizer: no model can be read from"),
        ("checkpoint.folder=github://a", "checkpoint.folder: github://a:"),
        ("teacher.config={model_type: vit}", "no model can be read from"),
        ("teacher.config={hidden_size: 8}", "it has no model_type"),
        ("teacher.config.num_hidden_layers=1000000000", "num_hidden_layers is more than 1,000"),
        ("teacher.config.num_labels=1000000000", "num_labels is more than 100,000"),
        ("teacher.config.num_attention_heads={a: 1}", "no model can be read from"),
        ("teacher.config.num_attention_heads=0", "transformers can't build a model"),
        ("teacher.config.vocab_size=many", "no model can be read from"),
        ("teacher.config.model_type=clip", "transformers can't build a model of this config"),
    ],
)
def test_values_that_nothing_can_be_made_of(tmp_path, override, expected):
    assert expected in refused(tmp_path, tiny_raw(tmp_path), "--set", override)


def test_a_model_that_reads_no_texts(tmp_path):
    raw = tiny_raw(tmp_path)
    raw["teacher"]["config"] = {**raw["teacher"]["config"], "model_type": "vit"}
    assert "ViTModel: has no table of tokens. Take a model that reads texts." in refused(
        tmp_path, raw
    )


def test_adapters_of_a_model_that_cannot_be_built(tmp_path):
    raw = tiny_raw(tmp_path, teacher={"lora": {"rank": 2}})
    raw["teacher"]["config"]["hidden_act"] = "none such"
    text = refused(tmp_path, raw)
    assert "teacher: transformers can't build a model of this config" in text


def test_a_model_of_layers_is_named_as_the_teacher_s(tmp_path):
    raw = tiny_raw(tmp_path, teacher={"config": None, "model": "~nobody-here/x"})
    raw["data"]["tokenizer"] = None
    text = refused(tmp_path, raw)
    assert "teacher.model: no model can be read from '~nobody-here/x'" in text
    assert "student" not in text


def test_long_values_are_cut_in_messages(tmp_path):
    text = refused(tmp_path, tiny_raw(tmp_path, schedule={"name": "x" * 10**6}))
    assert len(text) < 1000
    rows = [sentence(tags=["B-" + "X" * 10**6, "O"])]
    raw = tiny_raw(tmp_path)
    raw["data"]["test"] = str(write_jsonl(tmp_path / "own.jsonl", rows))
    text = refused(tmp_path, raw)
    assert "own.jsonl:1: label `XXX" in text
    assert len(text) < 1000


def test_brackets_in_texts_are_not_markup(tmp_path, monkeypatch):
    """Rich would end with a traceback at `[/b]`, and make a picture of `:x:`."""
    raw = tiny_raw(tmp_path)
    rows = [sentence(tags=["B-[/b]:x:", "O"]), sentence(sent_id=1)]
    for split, own in (("train", rows), ("validation", rows[1:]), ("test", rows[1:])):
        raw["data"][split] = str(write_jsonl(tmp_path / f"own-{split}.jsonl", own))
    raw["data"]["batch_tokens"] = 384
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    stop_at_the_crew(monkeypatch)
    status, text = command(["train", str(tmp_path / "c.yaml")])
    assert status is None, text
    assert "note: label [/b]:x: is not in the test split" in " ".join(text.split())


def test_a_schema_that_cannot_be_written(tmp_path):
    status, text = command(["schema", str(tmp_path / "none" / "x.json")])
    assert status == 2
    assert "x.json: can't be written (No such file or directory)" in " ".join(text.split())


def test_a_pipe_is_no_data_file(tmp_path):
    raw = tiny_raw(tmp_path)
    raw["data"]["train"] = str(tmp_path / "pipe.jsonl")
    os.mkfifo(raw["data"]["train"])
    assert "pipe.jsonl: can't be read: it is no file." in refused(tmp_path, raw)


@pytest.mark.parametrize("name", ["a*.csv", "a[1].csv", "a[1].parquet", "a?.parquet"])
def test_a_file_name_is_no_pattern(tmp_path, monkeypatch, name):
    """`datasets` takes one for a pattern: of other files too, or of none."""
    rows = ROWS["classification"]
    (tmp_path / "ab.csv").write_bytes(as_file(rows[:3], "csv", "classification"))
    (tmp_path / name).write_bytes(as_file(rows, name.rpartition(".")[2], "classification"))
    raw = tiny_raw(tmp_path, task={"name": "classification"})
    raw["data"] |= dict.fromkeys(("train", "validation", "test"), str(tmp_path / name))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    stop_at_the_crew(monkeypatch)
    status, text = command(["train", str(tmp_path / "c.yaml")])
    assert status is None, text
    assert f"{len(rows)} windows" in text


def test_a_cell_of_many_characters(tmp_path, monkeypatch):
    rows = [{**row, "text": "word " * 30_000} for row in ROWS["classification"][:2]]
    (tmp_path / "a.csv").write_bytes(as_file(rows, "csv", "classification"))
    raw = tiny_raw(tmp_path, task={"name": "classification"})
    raw["data"] |= dict.fromkeys(("train", "validation", "test"), str(tmp_path / "a.csv"))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    stop_at_the_crew(monkeypatch)
    status, text = command(["train", str(tmp_path / "c.yaml")])
    assert status is None, text


def test_a_cache_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    raw = tiny_raw(tmp_path, data={"cache_folder": str(tmp_path / "file" / "cache")})
    assert "data.cache_folder" in refused(tmp_path, raw)
    raw = tiny_raw(tmp_path, data={"cache_folder": "~nobody-here/x"})
    assert "data.cache_folder" in refused(tmp_path, raw)


def test_a_place_in_a_document_of_thousands_of_digits(tmp_path, monkeypatch):
    raw = tiny_raw(tmp_path)
    rows = [sentence(sent_id="9" * 5000), sentence(sent_id="1")]
    for split in ("train", "validation", "test"):
        raw["data"][split] = str(write_jsonl(tmp_path / "own.jsonl", rows))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    stop_at_the_crew(monkeypatch)
    assert command(["train", str(tmp_path / "c.yaml")])[0] is None


@pytest.mark.parametrize("head", ["[" * 10**5, [True, False], "[0, 1"])
def test_spans_that_are_none(head):
    raw = {"tokens": ["a", "b"], "head": head, "tail": [1, 2], "relation": "r"}
    row, mistakes = RelationReader(DataConfig()).read(Place("f", 1), raw)
    assert row is None
    assert "not a span [start, end) of two whole numbers" in mistakes[0].what


@pytest.mark.parametrize(
    "text",
    ["[" * 10**5, '{"format": 1, "step": 1e999, "files": {}, "score": null}', "{}", "1", "",
     '{"format": 1, "step": 1, "files": {}, "score": "x"}',
     '{"format": 1, "step": 1, "files": {"a": {"bytes": 1e999, "sha256": ""}}, "score": null}'],
)  # fmt: skip
def test_manifests_that_are_none(text):
    with pytest.raises(ValueError, match=r".") as caught:
        Manifest.parse(text)
    assert type(caught.value).__mro__.index(ValueError) <= 1


def test_optimizer_state_that_is_not_whole():
    value = torch.zeros(2)
    saved = {"value/w": value, "step/w": torch.tensor(1.0), "exp_avg/w": value}
    with pytest.raises(ValueError, match="of w only step and exp_avg were saved"):
        saved_state(saved, "w")
    saved["exp_avg_sq/w"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"exp_avg_sq/w has the shape \(3,\)"):
        saved_state(saved, "w")
    saved["exp_avg_sq/w"] = value
    assert list(saved_state(saved, "w")) == ["step", "exp_avg", "exp_avg_sq"]
    assert saved_state({"value/w": value}, "w") == {}


@pytest.mark.parametrize("line", [b"\xff", b"[]", b"{", b"[" * 10**5])
def test_damaged_rows_of_a_run_that_goes_on(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"metrics.jsonl:2: is not a row of a run. Restore"):
        JsonFiles(path.parent, Topology.pair(1, 1), trace=False).rewind(2, 0)


def test_an_evaluation_names_the_folder_that_is_damaged(tmp_path):
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(tiny_raw(tmp_path)))
    (run / "model" / "embedding.safetensors").write_text("x")
    task = {"task": "qa", "labels": [], "joint_weight": 0.5}
    for content, expected in (("{", "can't be read"), ("[]", "can't be read"), (task, None)):
        text = content if isinstance(content, str) else json.dumps(content)
        (run / "model" / "task.json").write_text(text)
        for stage in ("teacher", "student"):
            (run / "model" / stage).mkdir(exist_ok=True)
            config = tiny_raw(tmp_path)["teacher"]["config"]
            (run / "model" / stage / "config.json").write_text(json.dumps(config))
        status, printed = command(["evaluate", str(run)])
        assert status == 2
        assert (expected or "was trained for qa, its config says ner") in " ".join(printed.split())
