"""ONNX models of a run say what it says, for any number of texts, and without torch."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects

import tsarch
from tests.helpers import ROOT, tiny_blueprint, write_jsonl
from tests.test_export import export, ner_run, rows_of
from tsarch.errors import UserError
from tsarch.export.graphs import Fed, graph_of, write_graph
from tsarch.export.models import TrainedModels
from tsarch.export.onnx import Compared, losses_by_rounding
from tsarch.export.ordinary import difference, ordinary_model
from tsarch.launch.cli import main
from tsarch.model_folder import TaskFile
from tsarch.prediction.batch import as_json
from tsarch.serving.local_engine import Loading, LocalEngine
from tsarch.stage.build import build_model
from tsarch.tasks.collect import label_probabilities

__all__ = ["ner_run"]
WITHOUT_TORCH = """
import json, sys
for name in ("torch", "transformers", "safetensors.torch", "accelerate", "ray"):
    sys.modules[name] = None
import tsarch
pair = tsarch.load(sys.argv[1], backend="onnx")
rows = [json.loads(line) for line in open(sys.argv[2])]
found = {}
for mode in pair.modes:
    said = pair.predict(rows, mode)
    found[mode] = [[(e.type, e.first, e.stop, e.score) for e in own] for own in said]
text = "Maria Rossi flew from Rome to Paris. She met John there."
context = pair.read(text)
context.save(sys.argv[3])
again = pair.load_context(sys.argv[3])
(whole,) = pair.predict([text], "joint")
assert again.predict(mode="joint") == context.predict(mode="joint") == whole
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def onnx_folder(ner_run) -> Path:
    target = ner_run.parent / "onnx"
    export(ner_run, target, onnx=True, int8=True)
    return target


@pytest.mark.slow
def test_answers_without_torch_are_those_of_the_run(ner_run, onnx_folder, tmp_path):
    arguments = [str(onnx_folder), str(ner_run.parent / "test.jsonl"), str(tmp_path / "context")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    pair = tsarch.load(ner_run, device="cpu")
    rows = rows_of(ner_run)
    assert set(found) == set(pair.modes)
    for mode in pair.modes:
        for own, run in zip(found[mode], pair.predict(rows, mode), strict=True):
            assert [tuple(e[:3]) for e in own] == [(e.type, e.first, e.stop) for e in run]
            assert [e[3] for e in own] == pytest.approx([e.score for e in run], abs=1e-5)


@pytest.mark.slow
def test_what_was_compared_is_on_the_card(onnx_folder):
    card = (onnx_folder / "README.md").read_text()
    about = json.loads((onnx_folder / "export.json").read_text())
    for mode in ("teacher", "student", "joint", "student_alone"):
        assert f"`onnx/` in fp32, {mode}: 100.00% of answers equal" in card
        assert f"`onnx/` in int8, {mode}: " in card
    assert {"onnx/student.onnx", "onnx/student.int8.onnx"} <= set(about["parts"])
    whole, rounded = (
        (onnx_folder / "onnx" / name).stat().st_size
        for name in ("teacher.onnx", "teacher.int8.onnx")
    )
    assert rounded < whole / 2
    pair = tsarch.load(onnx_folder, backend="onnx", precision="int8")
    assert pair.revision != tsarch.load(onnx_folder, backend="onnx").revision
    (found,) = pair.predict(["Maria Rossi flew to Paris."], "teacher")
    assert isinstance(found, tuple)


@pytest.mark.slow
def test_what_cannot_be_loaded_is_told(ner_run, onnx_folder, tmp_path):
    with pytest.raises(UserError, match="has no ONNX models"):
        tsarch.load(ner_run, backend="onnx")
    with pytest.raises(UserError, match="is torch's"):
        tsarch.load(onnx_folder, backend="onnx", precision="bf16")
    with pytest.raises(UserError, match="take the backend onnx"):
        tsarch.load(ner_run, precision="int8")
    with pytest.raises(UserError, match="It is torch or onnx"):
        tsarch.load(ner_run, backend="jax")  # type: ignore[arg-type]
    copy = shutil.copytree(onnx_folder, tmp_path / "copy")
    (copy / "onnx" / "teacher.onnx").write_bytes(b"x")
    pair = tsarch.load(copy, backend="onnx")
    with pytest.raises(UserError, match="Export the run again"):
        pair.predict(["Rome"], "teacher")
    (copy / "onnx" / "student.onnx").unlink()
    with pytest.raises(UserError, match=r"lacks student\.onnx"):
        tsarch.load(copy, backend="onnx")


@pytest.mark.slow
def test_an_exported_folder_is_loaded_from_the_hub_by_name(onnx_folder, monkeypatch, tmp_path):
    asked = []

    def copied(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        target = tmp_path / f"copy-{len(asked)}"
        for file in filter_repo_objects(
            [str(own.relative_to(onnx_folder)) for own in onnx_folder.rglob("*") if own.is_file()],
            allow_patterns=allow_patterns,
        ):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(onnx_folder / file, target / file)
        return str(target)

    monkeypatch.setattr("huggingface_hub.snapshot_download", copied)
    monkeypatch.setattr("tsarch.prediction.hub.unreachable", lambda: None)
    by_torch, by_onnx = tsarch.load("org/ner-x"), tsarch.load("org/ner-x", backend="onnx")
    row = {"tokens": ["Maria", "Rossi", "flew", "to", "Paris", "."]}
    for mode in by_torch.modes:
        (a,), (b,) = by_torch.predict([row], mode), by_onnx.predict([row], mode)
        assert [(e.type, e.first) for e in a] == [(e.type, e.first) for e in b]
    assert [name for name, _ in asked] == ["org/ner-x"] * 2
    assert not list((tmp_path / "copy-2").rglob("*.safetensors"))


KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "modernbert": {
        "model_type": "modernbert",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id"), 0),
        **dict.fromkeys(("eos_token_id", "sep_token_id"), 2),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_other_kinds(tmp_path, kind):
    """A student that is narrower than the table, and knows a vector for the missing teacher: its
    projection is folded. ModernBERT's class for tokens has layers that nobody trained."""
    config = {**KINDS[kind], "vocab_size": 30522}
    narrow = {**config, "n_embd": 16} if kind == "gpt2" else {**config, "hidden_size": 16}
    student = {"layers": None, "config": narrow, "no_teacher": "learned"}
    blueprint = tiny_blueprint(tmp_path, teacher={"config": config}, student=student)
    built = {stage: build_model(blueprint, stage, 3) for stage in blueprint.stages}
    modules = {stage: own.module.eval().requires_grad_(False) for stage, own in built.items()}
    (table,) = (own.table for own in built.values() if own.table is not None)
    task = TaskFile("ner", ("O", "B-A", "I-A"), 0.5)
    models = TrainedModels(tmp_path, blueprint, task, table, modules, ())
    assert models.student is not None
    assert models.teacher is not None
    models.student.no_teacher.normal_()
    texts = [np.arange(5, 5 + size) for size in (17, 3, 1, 40, 8)]
    for module in (models.teacher, models.student):
        for fed in get_args(Fed) if module is models.student else ("none",):
            graph = graph_of(module, table, fed, False, 60)
            assert write_graph(graph, tmp_path / "model.onnx") < 1e-5
        if kind == "modernbert":
            with pytest.raises(UserError, match=r"more than a linear layer \(head\.dense"):
                ordinary_model(models, module)
        else:
            own = ordinary_model(models, module)
            assert difference(models, module, own, texts, [None] * 5) < 1e-5


def test_probabilities_of_arrays_are_those_of_tensors():
    import torch

    logits = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32) * 30
    wanted = label_probabilities(torch.from_numpy(logits), None, None)
    assert label_probabilities(logits, None, None) == pytest.approx(wanted, abs=1e-7)
    assert label_probabilities(logits[:0], None, None).shape == (0, 7)


def test_what_rounding_costs_is_told_beyond_a_point():
    def compared(value: float) -> Compared:
        return Compared("joint", 1.0, 0.1, "f1", 0.8, value, 1.0, 1.0)

    found = {"fp32": [compared(0.0)], "int8": [compared(0.795), compared(0.78)]}
    assert losses_by_rounding(found) == ["int8 loses 0.0200 of f1 in joint"]


@pytest.mark.slow
def test_files_are_predicted_without_torch(ner_run, onnx_folder, tmp_path):
    rows = rows_of(ner_run)
    source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    given = ["predict", str(onnx_folder), "--input", str(source), "--output", str(output)]
    code = "import sys; sys.modules['torch'] = None; from tsarch.launch.cli import main; main()"
    command = [sys.executable, "-c", code, *given, "--backend", "onnx", "--on-unread", "mark"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    expected = tsarch.load(onnx_folder, backend="onnx").predict(rows, on_unread="mark")
    found = [json.loads(line)["prediction"] for line in output.open()]
    assert found == [as_json(own) for own in expected]


@pytest.mark.slow
def test_graphs_are_served_and_swapped(onnx_folder, tmp_path):
    folder = shutil.copytree(onnx_folder, tmp_path / "served")

    async def asked() -> None:
        loading = Loading("cpu", backend="onnx")
        engine = LocalEngine({"own": folder.as_uri()}, loading)
        text = "Maria Rossi flew from Rome to Paris."
        (expected,) = tsarch.load(folder, backend="onnx").predict([text])
        first = await engine.predict("own", [text], "joint")
        assert first.answers == [as_json(expected)]
        (folder / "onnx" / "pair.json").touch()
        assert (await engine.reload("own")).version == first.version
        await engine.close()

    asyncio.run(asked())


@pytest.mark.slow
def test_what_does_not_go_together_is_told_at_once(ner_run, onnx_folder, capsys, tmp_path):
    out = ["--input", str(ner_run.parent / "test.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    for arguments, said in (
        (["predict", str(ner_run), *out, "--backend", "onnx"], "has no ONNX models"),
        (["predict", str(ner_run), *out, "--precision", "int8"], "take the backend onnx"),
        (["serve", str(onnx_folder), "--precision", "bf16", "--backend", "onnx"], "fp32 and int8"),
        (["serve", str(onnx_folder), "--backend", "onnx", "--ray"], "compute with torch"),
        (["serve", "s3://bucket/run", "--ray", "--address", "10.0.0.1:1"], "can't be read by all"),
        (["serve", "nowhere"], "is not a folder"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*arguments, "--port", "0"] if arguments[0] == "serve" else arguments)
        assert caught.value.code == 2
        assert said in capsys.readouterr().err
