"""Every shipped config that writes texts: with proposed tokens it writes those that it writes
without, in fp32, and in bf16 with `decoding.exact`. What its rows, lengths, windows, modes and
kinds of layers are is the config's own; weights are random, and pretrained models small ones of
their kind."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import yaml

from tests.helpers import ROOT
from tests.test_speculative import Guesses, texts_of
from tsarch.blueprint import Blueprint, resolve
from tsarch.config_loading import parse_config
from tsarch.data.tokenizer import end_token
from tsarch.pair.generation import Prompt, prompts_of
from tsarch.pair.proposing import TextSoFar
from tsarch.pair.reading import Halves
from tsarch.prepare import prepare_split
from tsarch.rank.generation_spec import writing_spec
from tsarch.stage.build import build_pair
from tsarch.tasks.registry import is_generative

SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 3072,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""In place of the pretrained ones, which have three times as many heads of queries too."""
NUM_TEXTS = 4
NEW_TOKENS = 16


def raw_of(path: Any) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


CONFIGS = [
    path
    for path in sorted((ROOT / "configs").glob("*.yaml"))
    if (task := raw_of(path).get("task")) is not None and is_generative(task["name"])
]


@cache
def prompts_and_blueprint(name: str) -> tuple[list[Prompt], Blueprint]:
    raw = raw_of(ROOT / "configs" / name)
    teacher, student = raw["teacher"], raw["student"]
    if teacher.pop("model", None) is not None:
        teacher["config"] = SMOLLM2
        raw["data"]["tokenizer"] = "sgd/tokenizer"
        if "layers" in student:
            student["layers"] = [1, 4]
        elif student.pop("model", None) is not None:  # another one, narrower
            student["config"] = {**SMOLLM2, "hidden_size": 48, "num_hidden_layers": 2}
        else:
            student["config"] = {**SMOLLM2, "num_hidden_layers": 1}
            student["drafting"] = {"vocabulary": 1024}
    teacher.pop("lora", None)  # a finished run's adapters are merged
    raw["decoding"].pop("num_beams", None)
    raw.pop("optimizer", None)
    raw["task"]["max_target_tokens"] = NEW_TOKENS
    raw["topology"] = {"runner": "local", "device": "cpu"}
    blueprint = resolve(parse_config(raw, name, base=ROOT / "configs"))
    split = prepare_split(blueprint, "test", ()).splits["test"]
    return prompts_of(split, range(NUM_TEXTS)), blueprint


@torch.no_grad()
def halves_of(blueprint: Blueprint, dtype: torch.dtype) -> Halves:
    """Random models, all of whose layers have a say."""
    pair = build_pair(blueprint, {"contexts": None, "windows": None}, dtype=dtype)
    halves = pair.halves(blueprint.window_tokens)
    generator = torch.Generator().manual_seed(0)
    for half in (halves.teacher, halves.student):
        assert half is not None
        module: Any = half.runs._module  # type: ignore[attr-defined]
        for parameter in module.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(1.5 * noise * parameter.shape[-1] ** -0.5)
    return halves


def test_all_of_them_are_tried():
    assert len(CONFIGS) >= 12


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id=path.stem, marks=pytest.mark.thorough if path.stem.endswith("-gpu") else ()
        )
        for path in CONFIGS
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_proposed_tokens_change_no_text(monkeypatch, path, precision):
    prompts, blueprint = prompts_and_blueprint(path.name)
    is_exact = precision == "bf16"
    halves = halves_of(blueprint, torch.bfloat16 if is_exact else torch.float32)
    spec = writing_spec(blueprint, end_token(blueprint.tokenizer()))
    plain = replace(spec, batch=2, num_proposed=0, exact=is_exact)
    for mode in blueprint.modes:
        wanted, without = texts_of(halves, prompts, mode, plain)
        if mode != "student_alone":  # whose windows may begin alike
            assert len({tuple(text) for text in wanted}) > 1
        with monkeypatch.context() as patched:
            guesses = Guesses(prompts, wanted)
            patched.setattr(TextSoFar, "proposal", lambda text, n, g=guesses: g(text, n))
            found, passes = texts_of(halves, prompts, mode, replace(plain, num_proposed=3))
        assert found == wanted
        assert passes.num_passes < without.num_passes
        if not is_exact:
            by_itself, _ = texts_of(halves, prompts, mode, replace(plain, num_proposed=-1))
            assert by_itself == wanted
