"""Tiny configs of runs whose student is a drafter, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.generative_configs import TEACHERS, generative_config
from tsarch.config import Config
from tsarch.export.card import Told
from tsarch.export.export import Wanted, export_run
from tsarch.launch.training import run_training

LLAMA: dict[str, Any] = {
    **TEACHERS["llama"],
    "initializer_range": 0.4,
    "vocab_size": 300,
    "eos_token_id": 0,
}
"""Random weights large enough that texts don't repeat one token."""
ONE_LAYER: dict[str, Any] = {**TEACHERS["llama"], "num_hidden_layers": 1, "vocab_size": 300}


def sections(**more: dict[str, Any]) -> dict[str, Any]:
    """A drafter of one layer, fed from two layers and the last one."""
    own: dict[str, Any] = {
        "teacher": {"config": LLAMA},
        "student": {
            "role": "drafter",
            "layers": None,
            "config": ONE_LAYER,
            "alone_weight": 0.0,
            "max_tokens": 30,
            "drafting": {"layers": [1, 2], "vocabulary": 280},
        },
        "distillation": {"weight": 1.0, "temperature": 1.0},
        "topology": {"runner": "local", "threads": 1},
    }
    for name, section in more.items():
        own[name] = {**own.get(name, {}), **section}
    return own


def drafter_config(folder: Path, **more: dict[str, Any]) -> Config:
    return generative_config(folder, "dialogue", "llama", **sections(**more))


def trained_and_exported(folder: Path) -> Path:
    """The folder of an export of a short run."""
    config = drafter_config(folder, evaluation={"before": False}, decoding={"max_texts": 1})
    run_training(config)
    export_run(folder / "run", folder / "exported", Wanted(rows=4), Told(), lambda _: None)
    return folder / "exported"
