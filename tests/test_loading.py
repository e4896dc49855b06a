"""Where runs are loaded from, and how they compute."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

import tsarch
from tests.generative_configs import generative_raw
from tsarch.config_loading import parse_config
from tsarch.errors import UserError
from tsarch.launch.training import run_training

TEXTS = [f"Maria Rossi flew from Rome to Paris {n} times . " * n for n in range(1, 9)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, whose cache is empty too."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def put(run: Path, url: str) -> None:
    """Copy what a run keeps to a URL, and something that nobody needs."""
    filesystem, root = fsspec.core.url_to_fs(url)
    for path in run.rglob("*"):
        name = path.relative_to(run)
        if path.is_file() and name.parts[0] in ("model", "config.yaml", "versions", "current.json"):
            filesystem.pipe_file(f"{root}/{name}", path.read_bytes())
    filesystem.pipe_file(f"{root}/checkpoints/step-1/x", b"large")


def copies(home: Path) -> list[Path]:
    return sorted((home / ".cache/tsarch/runs").iterdir())


def test_a_run_is_loaded_from_a_bucket_and_again_when_it_changes(ner_run, home, bucket):
    url = f"{bucket}/some/run"
    put(ner_run, url)
    expected = tsarch.load(ner_run, device="cpu").predict(TEXTS)
    assert tsarch.load(url, device="cpu").predict(TEXTS) == expected
    (copy,) = copies(home)
    assert sorted(path.name for path in copy.iterdir()) == ["config.yaml", "model"]
    before = copy.stat().st_mtime_ns
    assert tsarch.load(url, device="cpu").predict(TEXTS) == expected
    assert [path.stat().st_mtime_ns for path in copies(home)] == [before]
    task = json.loads((ner_run / "model/task.json").read_text())
    changed = json.dumps({**task, "joint_weight": 1.0})
    fsspec.filesystem("s3").pipe_file(f"{url}/model/task.json", changed.encode())
    again = tsarch.load(url, device="cpu")
    assert again.predict(TEXTS) == again.predict(TEXTS, "teacher")
    assert len(copies(home)) == 2


def test_of_a_run_behind_a_url_the_current_version_is_read(ner_run, home, tmp_path):
    run = tmp_path / "run"
    for name in ("one", "two"):
        shutil.copytree(ner_run / "model", run / "versions" / name / "model")
        shutil.copy(ner_run / "config.yaml", run / "versions" / name)
    (run / "current.json").write_text('{"version": "two"}')
    put(run, "memory://bucket/run")
    pair = tsarch.load("memory://bucket/run", device="cpu")
    assert pair.predict(TEXTS) == tsarch.load(ner_run, device="cpu").predict(TEXTS)
    assert [path.name for path in (copies(home)[0] / "versions").iterdir()] == ["two"]


def test_urls_without_a_run_are_told(ner_run, home):
    for url, what in {
        "memory://nowhere/run": "config.yaml is missing",
        "nosuch://bucket/run": "can't be read",
    }.items():
        with pytest.raises(UserError, match=what) as caught:
            tsarch.load(url)
        assert caught.value.mistakes[0].where == url
    assert tsarch.load(f"file://{ner_run}", device="cpu").predict(["Rome"]) is not None
    assert not (home / ".cache").exists()


def test_unknown_options_are_told(ner_run):
    for options, what in (
        ({"precision": "fp8"}, "It is fp32, bf16 or int8"),
        ({"device": "tpu"}, "It is auto, cpu or cuda"),
        ({"backend": "jax"}, "It is torch or onnx"),
        ({"batch_tokens": 0}, "is no whole number above 0"),
        ({"batch_tokens": "x"}, "is no whole number above 0"),
        ({"modes": "teachers"}, "teachers"),
    ):
        with pytest.raises(UserError, match=what):
            tsarch.load(ner_run, **options)


def _scores(answers):
    return {(n, e.start, e.text, e.type): e.score for n, own in enumerate(answers) for e in own}


def test_less_precise_numbers_and_other_batches_give_the_same_entities(ner_run):
    expected = tsarch.load(ner_run, device="cpu").predict(TEXTS, "teacher")
    assert any(expected)
    small = tsarch.load(ner_run, device="cpu", batch_tokens=1).predict(TEXTS, "teacher")
    assert _without_scores(small) == _without_scores(expected)
    rough = tsarch.load(ner_run, device="cpu", precision="bf16").predict(TEXTS, "teacher")
    found, wanted = _scores(rough), _scores(expected)
    same = found.keys() & wanted.keys()
    assert all(abs(found[key] - wanted[key]) < 1e-3 for key in same)
    # A run so short scores all labels alike (.12 to .14): rounding decides between some.
    assert len(same) >= 0.9 * len(found.keys() | wanted.keys())


def _without_scores(answers):
    return [[replace(entity, score=0) for entity in own] for own in answers]


@pytest.mark.thorough
def test_compiled_models_give_the_same_answers(ner_run):
    expected = tsarch.load(ner_run, device="cpu")
    pair = tsarch.load(ner_run, device="cpu", compile=True)
    for mode in pair.modes:
        found, wanted = pair.predict(TEXTS, mode), expected.predict(TEXTS, mode)
        assert _without_scores(found) == _without_scores(wanted)
        scores = [[e.score for own in answers for e in own] for answers in (found, wanted)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.thorough
def test_without_a_compiler_models_are_not_compiled(ner_run, tmp_path):
    """In a process of its own: torch keeps what was compiled."""
    code = f"import tsarch; tsarch.load({str(ner_run)!r}, device='cpu', compile=True)"
    changes = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **changes}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "compile: can't be done" in done.stderr
    assert "or leave `compile` out" in done.stderr


def test_eight_threads_share_a_pair(ner_run):
    pair = tsarch.load(ner_run, device="cpu")
    expected = {mode: [pair.predict([text], mode) for text in TEXTS] for mode in pair.modes}
    context = pair.read(TEXTS[-1])
    wanted = context.predict()
    jobs = [(mode, n) for mode in pair.modes for n in range(len(TEXTS))] * 2
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: pair.predict([TEXTS[job[1]]], job[0]), jobs))
        again = list(pool.map(lambda _: context.predict(), range(8)))
    assert found == [expected[mode][n] for mode, n in jobs]
    assert again == [wanted] * 8


@pytest.mark.slow
@pytest.mark.parametrize(("task", "model"), [("dialogue", "gpt2"), ("summarization", "t5")])
def test_eight_threads_share_a_pair_that_writes(tmp_path, task, model):
    raw = generative_raw(tmp_path, task, model)
    raw["run"]["folder"] = str(tmp_path / "run")
    raw["schedule"] = {"max_steps": 2}
    raw["topology"] = {"runner": "local", "device": "cpu", "threads": 1}
    run_training(parse_config(raw, "tiny"))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()][:8]
    pair = tsarch.load(tmp_path / "run", device="cpu")
    expected = [pair.predict([row]) for row in rows]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda row: pair.predict([row]), rows * 2)) == expected * 2
    with pytest.raises(UserError, match="Leave it out"):
        tsarch.load(tmp_path / "run", compile=True)
