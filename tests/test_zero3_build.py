"""ZeRO 3: the same weights as in one process, and never a whole model on a rank."""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModel

from tests.helpers import tiny_config
from tests.ranks import run_ranks
from tsarch.blueprint import Blueprint, resolve
from tsarch.models.backbone import backbone_config
from tsarch.models.construction import num_elements
from tsarch.parallel.groups import Address, MeetingPoint, set_stage_environment
from tsarch.stage.build import build_model
from tsarch.stage.deepspeed_engine import DeepSpeedEngine, stage_construction, start_stage_world
from tsarch.stage.engine import parameter_groups
from tsarch.topology import Stage

NUM_LABELS = 9
CPU = torch.device("cpu")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensor storage that operations make, as long as it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class Job:
    """A stage to build; the first rank writes what its engine has to `out`."""

    blueprint: Blueprint
    stage: Stage
    out: str
    precision: str = "fp32"


def build_on_rank(jobs: list[Job], replicas: int, address: Address, rank: int, _: Any) -> list[Any]:
    """Build and start one rank of each job's stage under ZeRO 3."""
    set_stage_environment(address, rank, replicas)
    start_stage_world(CPU, 60.0)
    return [build_job(job, replicas, rank) for job in jobs]


def build_job(job: Job, replicas: int, rank: int) -> dict[str, Any]:
    construction = stage_construction(job.precision, 3, replicas, 1)
    with LiveBytes() as live:
        built = build_model(job.blueprint, job.stage, NUM_LABELS, construction, rank == 0)
    result = {
        "peak": live.peak,
        "elements": num_elements(built.module),
        "trained": sum(p.requires_grad for p in built.module.parameters()),
        "table": None if built.table is None else built.table.numpy(),
        "groups": group_sizes(built.module, job),
    }
    spec = job.blueprint.stages[job.stage].optimizer
    engine = DeepSpeedEngine(built.module, spec, job.precision, 3, replicas, 1, CPU)
    state = engine.state_dict()
    if state is not None:
        save_file(state, job.out)
        save_file({name: tensor + 1 for name, tensor in state.items()}, job.out + ".moved")
    torch.distributed.barrier()
    moved = load_file(job.out + ".moved")
    engine.load_state_dict(moved)
    again = engine.state_dict()
    assert again is None or all(torch.equal(again[name], tensor) for name, tensor in moved.items())
    return result


def group_sizes(module: torch.nn.Module, job: Job) -> list[int]:
    """Parameters of each optimizer group: backbone or new, with or without weight decay."""
    groups = parameter_groups(module, job.blueprint.stages[job.stage].optimizer)
    return [len(group["params"]) for group in groups]


def build_on_ranks(jobs: list[Job], replicas: int) -> list[list[dict[str, Any]]]:
    """Results by rank and job."""
    meeting_point = MeetingPoint("127.0.0.1")
    build = partial(build_on_rank, jobs, replicas, meeting_point.address)
    return run_ranks(build, replicas, timeout_s=240.0)


def whole_bytes(blueprint: Blueprint, stage: Stage) -> tuple[Any, int]:
    with LiveBytes() as live:
        built = build_model(blueprint, stage, NUM_LABELS)
    return built, live.peak


def save_bert(folder: Path, shard: str, **sizes: int) -> str:
    """A random BERT in safetensors shards."""
    raw = {"model_type": "bert", "num_attention_heads": 2, "max_position_embeddings": 128, **sizes}
    torch.manual_seed(5)
    model = AutoModel.from_config(backbone_config(None, raw, 0.0, 0.0))
    model.save_pretrained(folder, max_shard_size=shard)
    files = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(files.values())) >= 4
    return str(folder)


def case_config(tmp_path: Path, case: str):
    """Teacher pretrained or random; student of its own or of the teacher's layers."""
    small = {"hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64}
    path = save_bert(tmp_path / "teacher", "50KB", vocab_size=30522, **small)
    own = save_bert(tmp_path / "own", "30KB", vocab_size=30522, **{**small, "hidden_size": 24})
    sections: dict[str, dict[str, Any]] = {"teacher": {"freeze": "all_but_top_k", "top_k": 1}}
    if case != "random":
        sections["teacher"].update(config=None, model=path)
    sections["student"] = {"no_teacher": "learned"}
    if case == "own":
        sections["student"].update(layers=None, model=own)
        sections["embedding"] = {"init": "student"}
    return tiny_config(tmp_path, **sections)


CASES = [
    ("layers", Stage.TEACHER, "fp32"),
    ("layers", Stage.STUDENT, "fp32"),
    ("own", Stage.STUDENT, "bf16"),
    ("random", Stage.TEACHER, "fp32"),
    ("random", Stage.STUDENT, "fp32"),
]


def large_model(tmp_path: Path):
    """30 MB of weights in at least 4 files; the largest parameter has 1.3 MB."""
    width, inner = 288, 1152
    sizes = {"hidden_size": width, "num_hidden_layers": 7, "intermediate_size": inner}
    path = save_bert(tmp_path / "model", "6MB", vocab_size=1000, **sizes)
    return tiny_config(tmp_path, teacher={"config": None, "model": path})


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("replicas", [pytest.param(2, marks=pytest.mark.thorough), 3])
def test_the_engine_has_the_weights_of_one_process_and_no_rank_ever_holds_them_all(
    tmp_path, replicas
):
    """One start of ranks builds all stages."""
    jobs = []
    for case, stage, precision in CASES:
        folder = tmp_path / f"{case}-{stage}"
        folder.mkdir()
        jobs.append(
            Job(resolve(case_config(folder, case)), stage, str(folder / "state"), precision)
        )
    large = Job(resolve(large_model(tmp_path)), Stage.TEACHER, str(tmp_path / "state"))
    ranks = build_on_ranks([*jobs, large], replicas)
    for number, job in enumerate(jobs):
        check_against_one_process(job, [rank[number] for rank in ranks])
    check_peaks(large, [rank[-1]["peak"] for rank in ranks])


def check_peaks(job: Job, peaks: list[int]) -> None:
    built, whole_peak = whole_bytes(job.blueprint, job.stage)
    model_bytes = 4 * num_elements(built.module)
    assert model_bytes > 25e6
    assert whole_peak > model_bytes
    largest = max(4 * p.numel() for p in built.module.parameters())
    table = 4 * built.table.numel()
    for peak in peaks:
        # A parameter is whole three times at most: in the file, in memory, on its way.
        assert peak < model_bytes / len(peaks) + 3 * largest + table + 0.25e6
        assert peak < 0.75 * model_bytes


def check_against_one_process(job: Job, ranks: list[dict[str, Any]]) -> None:
    built, _ = whole_bytes(job.blueprint, job.stage)
    wanted, found = built.module.state_dict(), load_file(job.out)
    assert found.keys() == wanted.keys()
    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    assert all(torch.equal(found[name], tensor.to(dtype)) for name, tensor in wanted.items())
    initial = job.blueprint.table.stage is job.stage
    assert [rank["table"] is not None for rank in ranks] == [initial] + [False] * (len(ranks) - 1)
    if initial:
        assert np.array_equal(ranks[0]["table"], built.table.numpy())
    for rank in ranks:
        assert rank["elements"] == num_elements(built.module)
        assert rank["trained"] == sum(p.requires_grad for p in built.module.parameters())
        assert rank["groups"] == group_sizes(built.module, job)
