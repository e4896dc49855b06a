"""A run exported: the pair again, ordinary models of transformers, a card; whole or not at all."""

from __future__ import annotations

import io
import json
import re
import shutil
from bisect import bisect
from contextlib import redirect_stdout
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, pipeline

import tsarch
from tests.generative_configs import generative_raw
from tests.helpers import QUICKSTART_MODEL, tiny_config
from tests.test_pair import run_of
from tsarch.config import LossConfig
from tsarch.config_changes import altered
from tsarch.config_loading import dump_config, parse_config
from tsarch.errors import UserError
from tsarch.export import writing
from tsarch.export.card import Told
from tsarch.export.export import Exported, Wanted, export_run
from tsarch.export.models import read_models
from tsarch.export.origins import first_config
from tsarch.export.pair_folder import portable
from tsarch.launch.cli import main
from tsarch.launch.training import run_training
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.tasks.ner import entities


@pytest.fixture(scope="module")
def ner_run(tmp_path_factory) -> Path:
    """A short run whose best weights tag something."""
    folder = tmp_path_factory.mktemp("ner")
    config = run_of(folder, "ner")
    student = config.student.model_copy(update={"no_teacher": "learned"})  # type: ignore[union-attr]
    longer = config.schedule.model_copy(update={"max_steps": 12})
    update = {"loss": LossConfig(label_weights="balanced"), "schedule": longer, "student": student}
    run_training(config.model_copy(update=update))
    return folder / "run"


@pytest.fixture(scope="module")
def exported(ner_run) -> Path:
    """It, exported without ONNX."""
    target = ner_run.parent / "exported"
    export(ner_run, target)
    return target


ASKED: dict[str, Any] = {
    "classification": "The ship left on Monday.",
    "relation": {
        "tokens": ["The", "engine", "drives", "a", "large", "pump", "."],
        "head": [1, 2],
        "tail": [5, 6],
    },
    "ranking": {"query": "When was it opened?", "passage": "The bridge was opened in 1937."},
}
"""What the cards ask."""


def run_card(folder: Path, instead: tuple[str, str] = ("", "")) -> str:
    """What the card's code without tsarch prints; `instead`: a text in place of its own."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    (code,) = [block for block in blocks if "import torch" in block]
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(code.replace("FOLDER", str(folder)).replace(*instead), {})
    return printed.getvalue().strip()


def export(run: Path, target: Path, **wanted: bool) -> Exported:
    said = Wanted(**{"onnx": False, "rows": 40, **wanted})  # type: ignore[arg-type]
    return export_run(run, target, said, Told(), lambda _: None)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.parent / "test.jsonl").open()]


def tags_by(tagger: Any, words: list[str]) -> list[str]:
    """As the card says: a word's tag is that of its first token."""
    stops = [stop - 1 for stop in accumulate(len(word) + 1 for word in words)]
    tokens = reversed(tagger(" ".join(words)))
    found = {bisect(stops, token["start"]): token["entity"] for token in tokens}
    return [found[number] for number in range(len(words))]


def is_cut(tokenizer: Any, words: list[str]) -> bool:
    """Whether a pipeline would leave out the end."""
    return len(tokenizer(" ".join(words)).input_ids) > tokenizer.model_max_length


def answer_of(pair: TrainedPair, row: dict[str, Any], mode: Any) -> list[tuple[str, int, int]]:
    (found,) = pair.predict([row], mode)
    return [(own.type, own.first, own.stop) for own in found]  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["teacher", "student_alone"])
def test_a_pipeline_of_transformers_tags_as_the_run_does(ner_run, exported, mode):
    tagger = pipeline("token-classification", model=str(exported / mode), ignore_labels=[])
    pair = tsarch.load(ner_run, device="cpu")
    found = []
    for row in rows_of(ner_run)[:25]:
        if is_cut(tagger.tokenizer, row["tokens"]):
            continue
        own = entities(tags_by(tagger, row["tokens"]))  # type: ignore[arg-type]
        assert own == answer_of(pair, row, mode)
        found += own
    assert found, "nothing was tagged"
    config = json.loads((exported / mode / "config.json").read_text())
    assert tuple(config["id2label"].values()) == pair.labels
    assert AutoTokenizer.from_pretrained(exported / mode).model_max_length == (
        96 if mode == "teacher" else 40
    )


@pytest.mark.slow
def test_the_pair_answers_from_its_new_folder(ner_run, exported):
    run, own = tsarch.load(ner_run, device="cpu"), tsarch.load(exported, device="cpu")
    for mode in run.modes:
        assert own.predict(rows_of(ner_run), mode) == run.predict(rows_of(ner_run), mode)
    text = (exported / "config.yaml").read_text() + (exported / "export.json").read_text()
    assert str(ner_run.parent) not in text + (exported / "README.md").read_text()
    assert str(ner_run.parent) not in (exported / "teacher" / "config.json").read_text()


def test_the_first_run_of_several_tells_what_they_started_from(tmp_path):
    def written(name: str, start: str | None) -> Path:
        folder = tmp_path / "run" / "versions" / name
        folder.mkdir(parents=True)
        model = "org/large" if start is None else None
        raw = {"run": {"start_from": start}, "teacher": {"model": model}}
        (folder / "config.yaml").write_text(yaml.safe_dump(raw))
        return folder

    first = written("v1", None)
    written("v2", str(tmp_path / "where it was" / "versions" / "v1" / "model"))
    last = written("v3", str(tmp_path / "run" / "versions" / "v2" / "model"))
    for folder in (first, last):
        found = first_config(folder)
        assert found is not None
        assert found["teacher"]["model"] == "org/large"
    exported = written("exported", "model")
    assert first_config(exported) is None
    (first / "config.yaml").unlink()
    assert first_config(last) is None


def test_what_a_run_came_from_is_named_without_its_place(tmp_path):
    config = tiny_config(
        tmp_path,
        run={"start_from": str(tmp_path / "versions" / "v1" / "model")},
        data={"unlabelled": [str(tmp_path / "texts" / "*.txt"), "s3://bucket/x.txt"]},
    )
    taught = {"from_run": [str(tmp_path / "runs" / "a"), "runs/b"]}
    raw = yaml.safe_load(dump_config(altered(config, {"distillation": taught})))
    own = portable(raw)
    assert own["run"]["start_from"] == "model"
    assert own["distillation"]["from_run"] == ["a", "runs/b"]
    assert own["data"]["unlabelled"] == ["*.txt", "s3://bucket/x.txt"]
    assert str(tmp_path) not in yaml.safe_dump(own)


@pytest.mark.slow
def test_the_card_has_metrics_of_every_mode_and_what_the_hub_asks_for(ner_run, exported):
    card = ModelCard.load(exported / "README.md")
    after = json.loads((ner_run / "summary.json").read_text())["after"]
    own = {r.metric_name: r.metric_value for r in card.data.eval_results}
    for mode, metrics in after.items():
        assert own[f"f1 ({mode})"] == pytest.approx(metrics["f1"], abs=1e-4)
    assert card.data.license == "other"
    assert card.data.pipeline_tag == "token-classification"
    assert "started from random weights" in card.text
    assert set(yaml.safe_load(card.data.to_yaml())) >= {"license", "tags", "model-index", "metrics"}


@pytest.mark.slow
def test_what_the_user_and_the_backbones_say_is_on_the_card(ner_run, tmp_path):
    copy = shutil.copytree(ner_run, tmp_path / "run")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["teacher"] |= {"model": QUICKSTART_MODEL, "config": None}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    said = [str(copy), str(tmp_path / "out"), "--no-onnx", "--language", "fr", "--name", "nommeur"]
    with pytest.raises(SystemExit) as ended:
        main(["export", *said])
    assert not ended.value.code
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.language == ["fr"]
    assert card.data.model_name == "nommeur"
    assert f"started from `{QUICKSTART_MODEL}`: apache-2.0" in card.text


def check_graphs(folder: Path) -> None:
    """ONNX answers as the run does."""
    run = tsarch.load(folder / "run", device="cpu")
    own = tsarch.load(folder / "out", backend="onnx")
    rows = [json.loads(line) for line in (folder / "rows" / "test.jsonl").open()]
    for mode in run.modes:
        (found, unread), (wanted, problems) = (p.try_predict(rows, mode) for p in (own, run))
        assert len(found) > len(rows) / 2
        assert (unread, list(found)) == (problems, list(wanted))
        for a, b in zip(found.values(), wanted.values(), strict=True):
            assert type(a) is type(b)
            assert getattr(a, "name", None) == getattr(b, "name", None)
            assert getattr(a, "text", None) == getattr(b, "text", None)
            assert a.score == pytest.approx(b.score, abs=1e-5)  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "relation", "ranking", "qa"])
def test_other_tasks_are_ordinary_models_too(tmp_path, task):
    run_training(run_of(tmp_path, task))
    done = export(tmp_path / "run", tmp_path / "out", onnx=True)
    kind = "BertForQuestionAnswering" if task == "qa" else "BertForTokenClassification"
    assert not done.refused
    assert all(kind in done.parts[f"{mode}/"] for mode in ("teacher", "student_alone"))
    check_graphs(tmp_path)
    if task == "ranking":
        assert 0 <= float(run_card(tmp_path / "out")) <= 1
    elif task != "qa":
        name, score = run_card(tmp_path / "out").split()
        (own,) = tsarch.load(tmp_path / "run", device="cpu").predict([ASKED[task]], "student_alone")
        assert own.name == name  # type: ignore[union-attr]
        assert float(score) == pytest.approx(own.score, abs=1e-5)  # type: ignore[union-attr]
    if task == "qa":
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "student_alone")
        own = tokenizer("When?", "In May.")  # a window: [CLS] question [SEP] part of the passage
        said = tokenizer.convert_ids_to_tokens(own.input_ids)
        assert said == ["[CLS]", "when", "?", "[SEP]", "in", "may", "."]
        assert own.token_type_ids == [0] * 4 + [1] * 3
        assert len(tokenizer("When?").input_ids) == 2
        folder = tmp_path / "out" / "teacher"
        model = AutoModelForQuestionAnswering.from_pretrained(folder)
        pair = tsarch.load(tmp_path / "run", device="cpu")
        text, question = "The bridge was opened in May. It spans a bay.", "When was it opened?"
        own = AutoTokenizer.from_pretrained(folder)(question, text, return_tensors="pt")
        with torch.inference_mode():
            said = model(**own)
        inside = [place for place, part in enumerate(own.sequence_ids()) if part == 1]
        best = max(
            float(said.start_logits[0, i] + said.end_logits[0, j])
            for i in inside
            for j in inside
            if i <= j < i + 30
        )
        (answer,) = pair.predict([{"context": text, "question": question}], "teacher")
        assert answer.score == pytest.approx(best, abs=1e-4)  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "model"), [("dialogue", "llama"), ("summarization", "bart")])
def test_models_that_write_are_ordinary_too(tmp_path, task, model):
    raw = generative_raw(tmp_path, task, model)
    raw["run"]["folder"] = str(tmp_path / "run")
    raw["schedule"] = {"max_steps": 40}
    raw["topology"] = {"runner": "local", "device": "cpu", "threads": 1}
    if model == "bart":  # a token that the tokenizer doesn't leave out as a special one
        raw["teacher"]["config"]["decoder_start_token_id"] = 100
    run_training(parse_config(raw, "tiny"))
    done = export(tmp_path / "run", tmp_path / "out", onnx=True)
    assert list(done.refused) == ["onnx/"]
    assert "writes texts token by token" in done.refused["onnx/"]
    said = run_card(tmp_path / "out", ("Good morning.", "old house red"))
    text = "old house red"
    row = {"history": [text]} if task == "dialogue" else {"document": text}
    (own,) = tsarch.load(tmp_path / "run", device="cpu").predict([row], "teacher")
    assert own.text == said  # type: ignore[union-attr]
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "teacher").model_max_length == 64


@pytest.mark.slow
def test_adapters_are_merged(tmp_path):
    config = run_of(tmp_path, "ner")
    lora = {"rank": 2, "alpha": 64.0, "target_modules": ["query", "value"]}
    raw = config.model_dump()
    raw["teacher"]["lora"] = lora
    run_training(type(config).model_validate(raw))
    assert read_models(tmp_path / "run").merged
    done = export(tmp_path / "run", tmp_path / "out")
    assert not done.refused
    run, own = (tsarch.load(tmp_path / name, device="cpu") for name in ("run", "out"))
    rows = rows_of(tmp_path / "run")
    for mode in run.modes:
        assert len(own.predict(rows, mode)) == len(run.predict(rows, mode))
    from safetensors import safe_open

    for file in (tmp_path / "out").rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            assert not [name for name in tensors.keys() if "lora" in name]  # noqa: SIM118


@pytest.mark.slow
def test_a_folder_is_written_whole_or_not_at_all(ner_run, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        export(ner_run, tmp_path / "full")
    with pytest.raises(UserError, match="is no folder"):
        export(ner_run, tmp_path / "full" / "x")
    with pytest.raises(UserError, match="Make it first"):
        export(ner_run, tmp_path / "a" / "b")
    with pytest.raises(UserError, match="is not a finished run"):
        export(tmp_path / "full", tmp_path / "out")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tsarch.export.export.write_card", fails)
    with pytest.raises(UserError, match=r"can't be written: the disk is full\. Make room"):
        export(ner_run, tmp_path / "out")
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 9))
    with pytest.raises(UserError, match=r"needs about .* MB, and 0 MB are free"):
        export(ner_run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
