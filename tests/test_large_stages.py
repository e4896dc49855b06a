"""Offload, activation checkpointing, adapters and bf16 under DeepSpeed, against one process."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import local_crew, tiny_blueprint, tiny_config
from tests.ranks import run_ranks
from tests.suites.equivalence import TOLERANCE, Case, comparable, relative_difference, train_rows
from tsarch.rank.api import RankApi
from tsarch.rank.local_crew import LocalCrew

LORA = {"rank": 4, "alpha": 8.0, "target_modules": ["query", "output.dense"]}
OFFLOAD = {"offload_optimizer": True}
OFFLOAD_ALL = {"offload_optimizer": True, "offload_parameters": True}
AGAIN = {"activation_checkpointing": True}
FRAGMENT = {"deepspeed": {"zero_optimization": {"reduce_bucket_size": 5000}}}
# Schedule, optimizer, ZeRO stages; sections of teacher and student; their topologies.
VARIANTS = [
    ("joint", "adamw", (3, 2), {"lora": LORA, **AGAIN}, {"lora": {}}, OFFLOAD_ALL, OFFLOAD),
    ("joint", "sgd", (3, 1), AGAIN, {**AGAIN, **FRAGMENT}, OFFLOAD_ALL, OFFLOAD),
    ("joint", "adamw", (2, 0), {"freeze": "all_but_head"}, AGAIN, OFFLOAD, {}),
    ("overlapped", "adamw", (1, 3), {"lora": LORA, **FRAGMENT}, AGAIN, OFFLOAD, OFFLOAD_ALL),
    ("sequential", "adamw", (0, 3), {"lora": {}, **AGAIN}, {"lora": LORA}, {}, OFFLOAD),
]


def variant_config(tmp_path, schedule, optimizer, zero, teacher, student, *places):
    topology = {
        stage: {"zero_stage": z, **own}
        for stage, z, own in zip(("teacher", "student"), zero, places, strict=True)
    }
    config = tiny_config(
        tmp_path,
        teacher=teacher,
        student=student,
        schedule={"epochs": 3, "micro_batches": 3},
        topology=topology,
    )
    return comparable(config, Case(schedule, optimizer, (2, 1), zero), 10)


def in_one_process(config) -> LocalCrew:
    topology = config.topology.model_copy(update={"runner": "local"})
    config = config.model_copy(update={"topology": topology})
    return local_crew(config)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.replicas(2, 1)
def test_losses_and_saved_weights_are_those_of_one_process(tmp_path, crews):
    for number, variant in enumerate(VARIANTS):
        config = variant_config(tmp_path, *variant)
        one = in_one_process(config)
        reference = train_rows(one, 10)
        crew = crews.get(config)
        rows = train_rows(crew, 10)
        assert relative_difference(rows, reference) <= TOLERANCE[variant[1]], variant
        folders = [tmp_path / f"{name}-{number}" for name in ("ranks", "local")]
        for folder, own in zip(folders, (crew, one), strict=True):
            folder.mkdir()
            own.ask(RankApi.save, folder)
        for file in ("teacher", "student", "embedding"):
            many, single = (load_file(f / f"{file}.safetensors") for f in folders)
            assert set(many) == set(single)
            for name, value in single.items():
                torch.testing.assert_close(many[name], value, rtol=1e-3, atol=2e-4)
        crew.ask(RankApi.load, folders[1])


def train_in_bf16(rank, _group, address, folder):
    """Losses and dtypes of a teacher at every ZeRO stage, in fp32 and in bf16."""
    from tsarch.parallel.groups import set_stage_environment
    from tsarch.stage.build import build_model
    from tsarch.stage.deepspeed_config import stage_extra
    from tsarch.stage.deepspeed_engine import DeepSpeedEngine, start_stage_world
    from tsarch.topology import Stage

    set_stage_environment(address, rank, 2)
    device = torch.device("cpu")
    start_stage_world(device, 60.0)
    found = {}
    for precision in ("fp32", "bf16"):
        for zero in range(4):
            place = {"zero_stage": zero, "offload_optimizer": zero > 0}
            blueprint = tiny_blueprint(folder, topology={"teacher": place})
            own = blueprint.stages[Stage.TEACHER]
            engine = DeepSpeedEngine(
                build_model(blueprint, Stage.TEACHER, 5).module,
                own.optimizer,
                precision,
                zero,
                2,
                2,
                device,
                stage_extra(own.engine, pin_memory=False),
            )
            engine.train(True)
            losses = [_step(engine, rank) for _ in range(6)]
            state = engine._engine.basic_optimizer.state
            dtypes = {v.dtype for own in state.values() for v in own.values()}
            masters = {parameter.dtype for parameter in state}
            steps = {float(own["step"]) for own in state.values()}
            module = {parameter.dtype for parameter in engine.module.parameters()}
            found[precision, zero] = (losses, dtypes | masters, steps, module)
    return found


def _step(engine, rank: int) -> float:
    """A step of two micro-batches, both forwards before both backwards."""
    generator = torch.Generator().manual_seed(rank)
    losses = []
    for _ in range(2):
        embeds = torch.randn(2, 10, 32, generator=generator).to(engine.compute_dtype)
        labels = torch.randint(0, 5, (20,), generator=generator)
        _, logits = engine.forward(embeds.requires_grad_(), torch.ones(2, 10, dtype=torch.long))
        losses.append(torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels) / 4)
    for micro_batch, loss in enumerate(losses):
        engine.backward(loss, micro_batch == 1)
    engine.step(1.0)
    return sum(float(loss.detach()) for loss in losses)


class BF16Ranks:
    """`train_in_bf16` with its arguments, as another process can read it."""

    def __init__(self, address, folder) -> None:
        self.address, self.folder = address, folder

    def __call__(self, rank, group):
        return train_in_bf16(rank, group, self.address, self.folder)


@pytest.mark.ranks
@pytest.mark.slow
def test_master_weights_and_optimizer_state_stay_fp32(tmp_path):
    from tsarch.parallel.groups import MeetingPoint

    meeting_point = MeetingPoint("127.0.0.1")
    for found in run_ranks(BF16Ranks(meeting_point.address, tmp_path), 2):
        for zero in range(4):
            reference, *_ = found["fp32", zero]
            losses, kept, steps, module = found["bf16", zero]
            assert kept == {torch.float32}
            assert steps == {6.0}
            assert module == {torch.bfloat16}
            assert losses != reference
            assert losses == sorted(losses, reverse=True)
            torch.testing.assert_close(
                torch.tensor(losses), torch.tensor(reference), rtol=0.01, atol=0
            )
