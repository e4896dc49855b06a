"""`accelerate` with DeepSpeed ZeRO 2: both models on every rank, data parallel.

One engine holds the table and both models, and every step minimises the sum of both losses, the
student reading the teacher's detached hidden states: the table gets the gradients of both. (Two
engines that share the table would each write their own copy of it over the other's.) Every rank
has an equal share of tsarch's batch, padded and grouped by length as tsarch does it.

Run it with `torchrun --nproc-per-node 2`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils import DistributedType, InitProcessGroupKwargs, gather_object
from torch import Tensor, nn

from benchmarks.bench_job import (
    CONFIG,
    BenchJob,
    Counts,
    PeerBatch,
    Stopwatch,
    make_adamw,
    mean_loss,
)
from benchmarks.sides import SideRun, write_runs
from tsarch.config import Config
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.records import IGNORED
from tsarch.stage.deepspeed_engine import start_stage_world


class Pair(nn.Module):
    """Both models on one table; gives the sum of their losses."""

    def __init__(self, table: nn.Embedding, teacher: TeacherModel, student: StudentModel) -> None:
        super().__init__()
        self.table = table
        self.teacher = teacher
        self.student = student

    def forward(self, batch: PeerBatch) -> Tensor:
        """() ℓ_T + ℓ_S of a batch, each the mean over its labelled words."""
        # A rank without contexts has none; its loss is then 0.
        num_labels = max(int((batch.labels != IGNORED).sum()), 1)
        hidden, logits = self.teacher(self.table(batch.ids), batch.mask)
        groups = batch.windows
        student_logits = self.student(
            [self.table(group.ids) for group in groups],
            [group.mask for group in groups],
            hidden.detach().flatten(0, 1),
            [group.places for group in groups],
        )
        teacher_loss = mean_loss([logits], [batch.labels], num_labels)
        return teacher_loss + mean_loss(student_logits, [g.labels for g in groups], num_labels)


def deepspeed_config(config: Config) -> dict[str, object]:
    """ZeRO 2 as DeepSpeed's defaults have it."""
    return {
        # Batches are cut by tokens; this only has to be there.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.clip_norm,
        "zero_optimization": {"stage": 2},
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def run(job: BenchJob, num_steps: int, num_warm_up_steps: int) -> SideRun:
    """Train on this rank; every rank calls it and gets the measurement of all."""
    torch.set_num_threads(1)
    start_stage_world(torch.device("cpu"), timeout_s=120.0)
    plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_config(job.config))
    # With `cpu=True` accelerate takes plain DDP and drops the plugin without a word; without a
    # backend it takes every rank for the only one.
    gloo = InitProcessGroupKwargs(backend="gloo")
    accelerator = Accelerator(
        mixed_precision="bf16" if job.is_bf16 else "no",
        deepspeed_plugin=plugin,
        kwargs_handlers=[gloo],
    )
    assert accelerator.distributed_type is DistributedType.DEEPSPEED
    assert accelerator.num_processes == torch.distributed.get_world_size()
    torch.manual_seed(accelerator.process_index)
    model = Pair(*job.models())
    optimizer = make_adamw(model, job.config)
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    counts = Counts(0, 0, 0)
    watch = Stopwatch(num_warm_up_steps)
    for step, is_timed in watch.steps(num_steps):
        (batch,) = job.tensors(step, accelerator.process_index, accelerator.num_processes)
        accelerator.backward(model(batch))
        optimizer.step()
        optimizer.zero_grad()
        counts += batch.counts if is_timed else Counts(0, 0, 0)
    shares = gather_object([(counts, watch.wall_s, watch.cpu_s)])
    total = sum((own for own, _, _ in shares), Counts(0, 0, 0))
    return SideRun(
        "accelerate",
        num_steps,
        total.num_tokens,
        total.teacher_positions,
        total.student_positions,
        max(wall_s for _, wall_s, _ in shares),
        sum(cpu_s for _, _, cpu_s in shares),
    )


def main(
    output: Annotated[Path, typer.Option(help="JSON file of the measurement.")],
    config: Annotated[Path, typer.Option(help="Config of the job.")] = CONFIG,
    steps: Annotated[int, typer.Option(help="Timed steps.")] = 8,
    warm_up: Annotated[int, typer.Option(help="Steps before them.")] = 2,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
) -> None:
    """Time `accelerate` with ZeRO 2."""
    result = run(BenchJob.load(config, precision), steps, warm_up)
    if torch.distributed.get_rank() == 0:
        write_runs([result], output)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
