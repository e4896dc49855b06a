"""DeepSpeed's `PipelineModule` doing the `joint` job: two stages, ZeRO 1, 1F1B, a tied table.

Stage 0 is the table and the teacher's encoder; stage 1 is the table again (`TiedLayerSpec`: the
gradients of its two uses are summed), both heads and the student. The teacher's head sits at the
end because DeepSpeed takes the loss there; and only one floating-point tensor, the hidden states,
may cross the boundary, for each such tensor costs the first stage a backward pass of its own.
Window ids, masks and places travel with it, since a later stage's layers see nothing else.
Micro-batches are tsarch's own, in shapes of their own (`dynamic_shape`): nothing is padded more.

Run it with `torchrun --nproc-per-node 2`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import deepspeed
import torch
import torch.distributed as dist
import typer
from deepspeed.pipe import PipelineModule, TiedLayerSpec
from torch import Tensor, nn

from benchmarks.bench_job import (
    CONFIG,
    JOINT_MICRO_BATCHES,
    BenchJob,
    Counts,
    PeerBatch,
    Stopwatch,
    Table,
    make_adamw,
    mean_loss,
)
from benchmarks.sides import SideRun, write_runs
from tsarch.config import Config
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.records import IGNORED
from tsarch.stage.deepspeed_engine import start_stage_world

NUM_STAGES = 2
Tensors = tuple[Tensor, ...]


class TeacherLayer(nn.Module):
    """The teacher's encoder, without its head."""

    def __init__(self, teacher: TeacherModel) -> None:
        super().__init__()
        self.projection = teacher.projection
        self.backbone = teacher.backbone

    def forward(self, inputs: Tensors) -> Tensors:
        """Embeddings and mask of the contexts, and what the windows need → hidden states, and
        what the windows need."""
        embeds, mask, *windows = inputs
        output = self.backbone(inputs_embeds=self.projection(embeds), attention_mask=mask)
        return output.last_hidden_state, *windows


class LastLayer(nn.Module):
    """The teacher's head, and the student."""

    def __init__(self, teacher: TeacherModel, student: StudentModel) -> None:
        super().__init__()
        self.teacher_head = teacher.head
        self.student = student

    def forward(self, inputs: Tensors) -> Tensors:
        """Hidden states, and (embeddings, mask, places) of every group → logits of the contexts
        and of every group."""
        hidden, *windows = inputs
        boundary = hidden.flatten(0, 1)
        logits = self.student(windows[0::3], windows[1::3], boundary, windows[2::3])
        return self.teacher_head(hidden), *logits


def embed_contexts(table: Table, inputs: Tensors) -> Tensors:
    """The table's first use: embeds the contexts."""
    ids, *others = inputs
    return table(ids), *others


def embed_windows(table: Table, inputs: Tensors) -> Tensors:
    """The table's second use: embeds the windows."""
    hidden, *windows = inputs
    return hidden, *(table(x) if place % 3 == 0 else x for place, x in enumerate(windows))


def loss_of(outputs: Tensors, labels: Tensors) -> Tensor:
    """() a micro-batch's share of ℓ_T + ℓ_S, times their number, by which DeepSpeed divides.

    `labels`: labelled words of the step, labels of the contexts, labels of every group.
    """
    num_labels, *gold = labels
    return JOINT_MICRO_BATCHES * mean_loss(outputs, gold, int(num_labels))


def pipeline_items(batches: list[PeerBatch]) -> Iterator[tuple[Tensors, Tensors]]:
    """What `train_batch` takes: (inputs of the first stage, labels at the last) a micro-batch."""
    num_labels = torch.tensor(sum(int((b.labels != IGNORED).sum()) for b in batches))
    for batch in batches:
        windows = [x for group in batch.windows for x in (group.ids, group.mask, group.places)]
        labels = [group.labels for group in batch.windows]
        yield (batch.ids, batch.mask, *windows), (num_labels, batch.labels, *labels)


def deepspeed_config(config: Config) -> dict[str, Any]:
    """ZeRO 1 as DeepSpeed's defaults have it."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": JOINT_MICRO_BATCHES,
        "train_batch_size": JOINT_MICRO_BATCHES,
        "gradient_clipping": config.optimizer.clip_norm,
        "zero_optimization": {"stage": 1},
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def build_engine(job: BenchJob) -> Any:
    """The pipeline engine of this rank."""
    table, teacher, student = job.models()
    layers = [
        TiedLayerSpec("table", Table, table.weight, forward_fn=embed_contexts),
        TeacherLayer(teacher),
        TiedLayerSpec("table", Table, table.weight, forward_fn=embed_windows),
        LastLayer(teacher, student),
    ]
    module = PipelineModule(
        layers,
        num_stages=NUM_STAGES,
        loss_fn=loss_of,
        partition_method="uniform",
        dynamic_shape=True,
    )
    optimizer = make_adamw(module, job.config)
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=deepspeed_config(job.config)
    )
    return engine


def run(job: BenchJob, num_steps: int, num_warm_up_steps: int) -> SideRun:
    """Train on this rank; every rank calls it and gets the measurement of all."""
    torch.set_num_threads(1)
    start_stage_world(torch.device("cpu"), timeout_s=120.0)
    torch.manual_seed(dist.get_rank())
    engine = build_engine(job)
    counts = Counts(0, 0, 0)
    losses: list[float] = []
    watch = Stopwatch(num_warm_up_steps)
    for step, is_timed in watch.steps(num_steps):
        batches = job.tensors(step, num_micro_batches=JOINT_MICRO_BATCHES)
        loss = engine.train_batch(pipeline_items(batches))
        losses += [float(loss)] if is_timed else []
        counts += sum((b.counts for b in batches if is_timed), Counts(0, 0, 0))
    check_tied(engine.module.tied_modules["table"].weight.detach())
    times = torch.tensor([watch.wall_s, watch.cpu_s])
    found = [torch.zeros_like(times) for _ in range(NUM_STAGES)]
    dist.all_gather(found, times)
    cpu_s = [float(own[1]) for own in found]
    return SideRun(
        "pipeline",
        num_steps,
        counts.num_tokens,
        counts.teacher_positions,
        counts.student_positions,
        max(float(own[0]) for own in found),
        sum(cpu_s),
        {"teacher": cpu_s[0], "student": cpu_s[1]},
        losses,
    )


def check_tied(table: Tensor) -> None:
    """Both stages must have trained the same table (both call it)."""
    largest, smallest = table.clone(), table.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    assert torch.equal(largest, smallest), "the tied tables of the two stages differ"


def main(
    output: Annotated[Path, typer.Option(help="JSON file of the measurement.")],
    config: Annotated[Path, typer.Option(help="Config of the job.")] = CONFIG,
    steps: Annotated[int, typer.Option(help="Timed steps.")] = 8,
    warm_up: Annotated[int, typer.Option(help="Steps before them.")] = 2,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
) -> None:
    """Time DeepSpeed's pipeline."""
    result = run(BenchJob.load(config, precision), steps, warm_up)
    if dist.get_rank() == 0:
        write_runs([result], output)
    dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
