"""The benchmark of writing texts: every arm writes a run's texts, and what is measured is kept."""

from __future__ import annotations

import json

import pytest

from benchmarks import generation
from benchmarks.generation_table import table
from tests.generative_configs import generative_config
from tsarch.export.card import Told
from tsarch.export.export import Wanted, export_run
from tsarch.launch.training import run_training


def a_row(arm: str, plain: float, **against: float) -> dict[str, object]:
    ratios = {"plain": plain, **against}
    return {
        "task": "dialogue",
        "batch": 1,
        "model": "m",
        "precision": "bf16",
        "threads": 1,
        "prompts": 48,
        "new_tokens": 64,
        "arm": arm,
        "ms_a_token": 20.0,
        "against": ratios,
        "against_with_prompt": ratios,
        "same_texts": 47,
        "texts": 48,
        "tokens_a_pass": None if arm.startswith("generate") else 1.5,
    }


def test_the_table_has_a_line_an_arm():
    lines = table([a_row("generate", 0.7, generate=1.0), a_row("plain", 1.0, generate=1.43)])
    assert "dialogue: m, bf16, 1 thread(s), 48 prompts, 64 tokens at most" in lines
    *_, first, second = lines.splitlines()
    assert first == "| dialogue, 1 | generate | 20.0 | 1.00 |  | 0.70 | 1.00 | 0.70 |  | 47/48 |"
    assert second.startswith("| dialogue, 1 | plain | 20.0 | 1.43 |  | 1.00 |")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "t5"])
def test_all_arms_write_the_same_texts_in_fp32_and_go_on(tmp_path, monkeypatch, model):
    topology = {"runner": "local", "threads": 1}
    config = generative_config(tmp_path, "translation", model, topology=topology)
    run_training(config)
    run, exported = tmp_path / "run", tmp_path / "exported"
    export_run(run, exported, Wanted(onnx=False, rows=4), Told(), print)
    monkeypatch.setattr(generation, "_ROWS", tmp_path / "rows.json")
    monkeypatch.setattr(generation, "_RESULTS", tmp_path / "results.json")

    def measure(resume: bool) -> list[dict[str, object]]:
        generation.main(
            run=run,
            exported=exported / "teacher",
            precision="fp32",
            prompts=5,
            batch=[1, 2],
            name="reversed",
            resume=resume,
        )
        found: list[dict[str, object]] = json.loads((tmp_path / "rows.json").read_text())
        return found

    rows = measure(resume=False)
    assert {row["batch"] for row in rows} == {1, 2}
    arms = {row["arm"] for row in rows}
    lookup = {"generate, prompt lookup"} if model == "llama" else set()
    assert arms == {"generate", "plain", "speculative"} | lookup
    assert all(row["same_texts"] == row["texts"] == 5 for row in rows), rows
    assert (tmp_path / "results.md").read_text() == table(rows)
    assert measure(resume=True) == rows
