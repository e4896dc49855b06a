"""The command line: every mistake of the user is one clear message and exit status 2."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import QUICKSTART_MODEL, ROOT, tiny_raw, write_jsonl
from tsarch.launch.cli import main


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """(exit status, all output with line breaks folded)."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    return int(caught.value.code or 0), " ".join((captured.out + captured.err).split())


def train(tmp_path: Path, raw: dict[str, Any], capsys: Any, *more: str) -> tuple[int, str]:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    return run(["train", str(tmp_path / "c.yaml"), *more], capsys)


def sentence(**changes: Any) -> dict[str, Any]:
    row = {"doc_id": "d", "sent_id": 0, "tokens": ["Ann", "sings"], "tags": ["B-PER", "O"]}
    return {**row, **changes}


def with_rows(tmp_path: Path, split: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    raw = tiny_raw(tmp_path)
    raw["data"][split] = str(write_jsonl(tmp_path / f"own_{split}.jsonl", rows))
    return raw


def other_tokenizer(folder: Path) -> str:
    """A small model folder with a tokenizer of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[UNK]", "[PAD]", "Ann", "sings"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]"
    )
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=4, intermediate_size=16, **sizes)).save_pretrained(folder)
    return str(folder)


def test_unknown_key(tmp_path, capsys):
    status, text = train(tmp_path, tiny_raw(tmp_path, schedule={"epoch": 1}), capsys)
    assert status == 2
    assert "schedule.epoch: is not a key. Did you mean `schedule.epochs`?" in text


def test_unreadable_file(tmp_path, capsys):
    raw = tiny_raw(tmp_path, data={"train": str(tmp_path / "none.jsonl")})
    status, text = train(tmp_path, raw, capsys)
    assert status == 2
    assert "none.jsonl: can't be read: No such file or directory" in text


def test_label_missing_in_one_split(tmp_path, capsys):
    rows = [sentence(tags=["B-ALIEN", "O"])]
    status, text = train(tmp_path, with_rows(tmp_path, "test", rows), capsys)
    assert status == 2
    assert "own_test.jsonl:1: label `ALIEN` is in test but not in train" in text


def test_tags_and_tokens_of_different_length(tmp_path, capsys):
    rows = [sentence(), sentence(sent_id=1, tags=["O"])]
    status, text = train(tmp_path, with_rows(tmp_path, "train", rows), capsys)
    assert status == 2
    assert "own_train.jsonl:2: has 2 tokens but 1 tags." in text


def test_widths_that_cannot_be_tied(tmp_path, capsys):
    student = {"layers": None, "config": {**tiny_raw(tmp_path)["teacher"]["config"]}}
    student["config"]["hidden_size"] = 16
    raw = tiny_raw(tmp_path, student=student, embedding={"project": False})
    status, text = train(tmp_path, raw, capsys)
    assert status == 2
    assert (
        "a table of width 32 can't be tied to a teacher of embedding width 32 and a student" in text
    )


def test_more_replicas_than_devices(tmp_path, capsys):
    raw = tiny_raw(tmp_path)
    raw["topology"].update(cpus_per_rank=1.0, teacher={"replicas": 300})
    status, text = train(tmp_path, raw, capsys)
    assert status == 2
    assert "300 teacher + 1 student replicas need 301 CPUs, this machine has" in text


def test_inside_a_ray_job_the_cluster_counts_not_this_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    raw = tiny_raw(tmp_path)
    raw["topology"].update(cpus_per_rank=300.0)
    status, text = train(tmp_path, raw, capsys)
    assert status == 2
    assert "no Ray cluster can be joined" in text


def test_a_tokenizer_that_differs_between_the_two(tmp_path, capsys):
    model = other_tokenizer(tmp_path / "model")
    raw = tiny_raw(tmp_path, student={"layers": None, "model": model})
    status, text = train(tmp_path, raw, capsys)
    assert status == 2
    assert "student.model: its tokenizer differs" in text
    assert "need one tokenizer" in text


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"teacher": {"config": None, "model": "no/such"}}, "teacher.model: no model can be read"),
        ({"teacher": {"config": None, "model": "package:nope/x"}}, "is not installed"),
        ({"teacher": {"config": {"model_type": "nope"}}}, "teacher.config: no model can be read"),
        ({"student": {"layers": [0, 7]}}, "[7] are not among the teacher's layers 0 … 2"),
        ({"teacher": {"max_tokens": 200}}, "is 200, the model has 128 positions"),
        ({"data": {"tokenizer": None}}, "data.tokenizer: is missing"),
        ({"data": {"tokenizer": "/none"}}, "tokenizer /none: is not a folder"),
        ({"data": {"train": "x.unknown"}}, "x.unknown: can't be read: No such file"),
        ({"teacher": {"top_k": 2}}, "only counts with `freeze: all_but_top_k`"),
    ],
)
def test_mistakes_that_need_the_models(tmp_path, capsys, sections, expected):
    status, text = train(tmp_path, tiny_raw(tmp_path, **sections), capsys)
    assert status == 2
    assert expected in text


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"tokens": ["a"]}], "has no column `tags`"),
        ([sentence(tokens=[1, 2])], "`tokens` has 1 as item 1, not a string"),
        ([sentence(tokens=[], tags=[])], "has no tokens"),
        ([sentence(tags=["B-PER", "I-LOC"])], "which IOB2 doesn't allow. If the file is IOB1"),
        ([sentence(tags=["O", "B-"])], "tag 2 is `B-`, not O, B-TYPE or I-TYPE"),
        ([sentence(), sentence()], "sentence 0 of document d was at"),
        ([], "own_train.jsonl: is empty"),
    ],
)
def test_bad_rows(tmp_path, capsys, rows, expected):
    status, text = train(tmp_path, with_rows(tmp_path, "train", rows), capsys)
    assert status == 2
    assert expected in text


def test_broken_json_and_encoding_are_all_named(tmp_path, capsys):
    raw = tiny_raw(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"tokens": \n[1]\n\n' + json.dumps(sentence()) + "\n")
    (tmp_path / "b.jsonl").write_bytes(b'{"tokens": ["\xff"]}\n')
    raw["data"].update(train=str(tmp_path / "a.jsonl"), test=str(tmp_path / "b.jsonl"))
    status, text = train(tmp_path, raw, capsys)
    assert status == 2
    assert "a.jsonl:1: is not JSON" in text
    assert "a.jsonl:2: is not a JSON object" in text
    assert "b.jsonl:1: is not UTF-8 text" in text


def test_a_run_folder_below_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    raw = tiny_raw(tmp_path, run={"folder": str(tmp_path / "file" / "run")})
    status, text = train(tmp_path, raw, capsys)
    assert status == 2
    assert "is a file. Choose another folder" in text


def test_a_taken_run_folder_is_left_alone(tmp_path, capsys):
    raw = tiny_raw(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    status, text = train(tmp_path, raw, capsys)
    assert status == 2
    assert "is not empty. Choose another folder" in text
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["precious"]


def test_no_mistake_leaves_a_run_folder(tmp_path, capsys):
    rows = [sentence(tags=["O"])]
    assert train(tmp_path, with_rows(tmp_path, "train", rows), capsys)[0] == 2
    assert not (tmp_path / "run").exists()


def test_no_cluster_at_the_address(tmp_path, capsys):
    status, text = train(tmp_path, tiny_raw(tmp_path), capsys, "--address", "127.0.0.1:1")
    assert status == 2
    assert "--address 127.0.0.1:1: no Ray cluster can be joined" in text


def test_evaluate_wants_a_finished_run(tmp_path, capsys):
    status, text = run(["evaluate", str(tmp_path)], capsys)
    assert status == 2
    assert "is not a finished run (config.yaml is missing)" in text


def test_schema_prints_json(capsys):
    status, text = run(["schema"], capsys)
    assert status == 0
    assert json.loads(text)["title"] == "Config"


def test_the_quickstart_model_is_a_package_path():
    from tsarch.data.tokenizer import resolve_model_path

    assert (Path(resolve_model_path(QUICKSTART_MODEL)) / "config.json").is_file()


def test_the_package_can_be_run(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tsarch", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("tsarch", run_name="__main__")
    assert caught.value.code == 0
    assert "predict" in capsys.readouterr().out


def test_what_is_switched_off_is_said_to_be_unused(tmp_path):
    from tests.helpers import tiny_config
    from tsarch.config_changes import unused_keys

    config = tiny_config(
        tmp_path,
        distillation={"hidden_layers": "uniform", "relations": ["keys"]},
        unlabelled={"ratio": 3},
    )
    assert list(unused_keys(config)) == [
        "distillation.hidden_layers is not used: distillation.hidden_weight is 0",
        "distillation.relations is not used: distillation.relation_weight is 0",
        "unlabelled.ratio is not used: there is no data.unlabelled",
    ]
    told = tiny_config(
        tmp_path,
        distillation={"weight": 0, "hidden_weight": 1, "temperature": 4},
        data={"unlabelled": str(ROOT / "README.md")},
        unlabelled={"min_confidence": 0.9},
        optimizer={"momentum": 0.9},
        student={"drafting": {"steps": 2}},
    )
    assert {note.split(" ")[0] for note in unused_keys(told)} == {
        "distillation.temperature",
        "unlabelled.min_confidence",
        "optimizer.momentum",
        "student.drafting.steps",
    }
    assert not list(unused_keys(tiny_config(tmp_path)))
    used = {"hidden_layers": "uniform", "hidden_weight": 1.0, "match_passes": "alone"}
    assert not list(unused_keys(tiny_config(tmp_path, distillation=used)))
