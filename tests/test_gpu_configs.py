"""The configs for GPUs, whole runs on CPU ranks: small models of the same architectures stand in
for the hub's; precision, ZeRO stages, adapters, offload and the rest are the config's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModel, AutoTokenizer

from tests.helpers import QUICKSTART_MODEL, ROOT
from tests.suites.crews import Crews
from tsarch.blueprint import resolve
from tsarch.checkpoint.store import Store
from tsarch.config import MODES, Config
from tsarch.config_loading import load_config
from tsarch.data.tokenizer import resolve_model_path
from tsarch.planning.preflight import check_run
from tsarch.prepare import prepare_data
from tsarch.run.loop import Trainer
from tsarch.run.saved_run import evaluate_run
from tsarch.tasks.generative import OBEDIENCE
from tsarch.tasks.registry import table_metrics
from tsarch.telling.run_folder import RunFolder
from tsarch.telling.terminal import Reporter
from tsarch.telling.tracker import TrackedRun
from tsarch.telling.trackers import open_trackers

ENCODER = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
ENCODER |= {"max_position_embeddings": 520, "pad_token_id": 0}
CAUSAL = {
    "tie_word_embeddings": True,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CAUSAL |= {"intermediate_size": 48, "max_position_embeddings": 2048}
# Hub name: architecture and width of what stands in for it.
STAND_INS = {
    "bert-large-cased": ("bert", 32),
    "bert-base-cased": ("bert", 24),
    "roberta-large": ("roberta", 32),
    "roberta-base": ("roberta", 24),
    "FacebookAI/roberta-large": ("roberta", 32),
    "FacebookAI/roberta-base": ("roberta", 24),
    "FacebookAI/xlm-roberta-xl": ("xlm-roberta-xl", 32),
    "FacebookAI/xlm-roberta-base": ("xlm-roberta", 24),
    "HuggingFaceTB/SmolLM2-1.7B": ("llama", 32),
    "HuggingFaceTB/SmolLM2-135M": ("llama", 24),
}
NUM_ROWS = 16
NUM_STEPS = 3


def is_for_gpus(path: Path) -> bool:
    return load_config(path).topology.device == "cuda"


CONFIGS = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if is_for_gpus(path)]


def stand_in(name: str, folder: Path) -> str:
    """A folder with a model and a tokenizer for it."""
    kind, width = STAND_INS[name]
    place = folder / f"{kind}-{width}"
    source = ROOT / "configs" / "sgd" / "tokenizer"
    sizes: dict[str, Any] = CAUSAL
    if kind != "llama":
        source, sizes = Path(resolve_model_path(QUICKSTART_MODEL)), ENCODER
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = AutoConfig.for_model(kind, hidden_size=width, vocab_size=len(tokenizer), **sizes)
    AutoModel.from_config(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


def on_cpus(path: Path, folder: Path) -> Config:
    """A config with stand-ins, a few rows and fewer replicas."""
    config = load_config(path)
    overrides = [
        "topology.device=cpu",
        "topology.runner=processes",
        "topology.cpus_per_rank=0.5",
        "topology.threads=1",
        "topology.teacher.replicas=2",
        "topology.student.replicas=1",
        f"schedule.max_steps={NUM_STEPS}",
        f"data.batch_tokens={config.teacher.max_tokens}",
        "decoding.max_texts=3",
        "task.max_target_tokens=8",
        f"data.cache_folder={folder / 'cache'}",
        f"run.folder={folder / 'run'}",
    ]
    for stage in ("teacher", "student"):
        overrides.append(f"{stage}.model={stand_in(getattr(config, stage).model, folder)}")
    lines = Path(config.data.train).read_text(encoding="utf-8").splitlines()[:NUM_ROWS]
    part = folder / "rows.jsonl"
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    overrides += [f"data.{split}={part}" for split in ("train", "validation", "test")]
    return load_config(path, overrides)


def some_alone(path: Path) -> Any:
    """One config of each kind of model always, the others where all tests are run."""
    kinds = ("bert-large-2-nodes", "large-teacher", "qa-gpu", "summarization-gpu")
    return path if path.stem in kinds else pytest.param(path, marks=pytest.mark.thorough)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
@pytest.mark.parametrize("path", map(some_alone, CONFIGS), ids=lambda path: path.stem)
def test_it_trains_measures_and_saves(tmp_path: Path, crews: Crews, path: Path) -> None:
    config = on_cpus(path, tmp_path)
    check_run(resolve(config), own_ray=True)
    prepared, crew = prepare_data(resolve(config)), crews.get(config)
    store = Store(str(tmp_path / "checkpoints"))
    folder = RunFolder(tmp_path / "run")
    folder.write_config(resolve(config))
    with open_trackers(TrackedRun.of(folder.path, crew.blueprint), print) as trackers:
        trainer = Trainer(resolve(config), prepared, crew, folder, trackers, Reporter(), store)
        summary = trainer.run().as_json()
    assert (summary["steps"], summary["bad_steps"]) == (NUM_STEPS, 0)
    assert summary["checkpoints"]["failed"] == 0 < summary["checkpoints"]["count"]
    again = evaluate_run(tmp_path / "run", "test").evaluation
    metrics = {*table_metrics(config.task.name)}
    if config.task.control is None:
        metrics -= {OBEDIENCE}
    for found in (summary["before"], summary["after"], again.metrics):
        assert all(math.isfinite(found[mode][metric]) for mode in MODES for metric in metrics)
