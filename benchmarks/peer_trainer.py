"""Hugging Face `Trainer`: the teacher on its contexts, then the student on its windows.

Two ordinary token classifiers, one after the other in one process. The student reads its windows
without hidden states of the teacher (a `Trainer` has one model), and starts on the teacher's
trained table: less work than the other sides do. Batches are as a good user would have them: as
many contexts, then windows, as make tsarch's step, samples of similar length together
(`group_by_length`), padded to the longest.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn
from transformers import (
    DataCollatorForTokenClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from benchmarks.bench_job import CONFIG, BenchJob, Stopwatch, learning_rate
from benchmarks.common import Features
from benchmarks.sides import CORES, SideRun, write_runs
from tsarch.config import Config
from tsarch.losses.token import cross_entropy
from tsarch.records import IGNORED, IntArray


class Tagger(nn.Module):
    """A table, an encoder and a head: what `AutoModelForTokenClassification` is."""

    def __init__(self, table: nn.Embedding, backbone: PreTrainedModel, head: nn.Module) -> None:
        super().__init__()
        self.table = table
        self.backbone = backbone
        self.head = head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """(batch, tokens) each → `loss`, the mean over labelled words, and `logits`."""
        output = self.backbone(inputs_embeds=self.table(input_ids), attention_mask=attention_mask)
        logits = self.head(output.last_hidden_state)
        num_labels = (labels != IGNORED).sum()
        return {"loss": cross_entropy(logits, labels).sum() / num_labels, "logits": logits}


@dataclass
class PhaseTimer(TrainerCallback):  # type: ignore[misc]
    """Times the steps after the warm-up, and counts what the model reads in them."""

    num_warm_up_steps: int
    num_tokens: int = 0
    num_positions: int = 0
    is_timed: bool = False

    def __post_init__(self) -> None:
        self.watch = Stopwatch(self.num_warm_up_steps)

    def count(self, model: nn.Module, args: tuple[Any, ...], inputs: dict[str, Tensor]) -> None:
        """A forward pre-hook of the model."""
        if self.is_timed:
            self.num_tokens += int(inputs["attention_mask"].sum())
            self.num_positions += inputs["attention_mask"].numel()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start after the warm-up."""
        if state.global_step == self.num_warm_up_steps:
            self.is_timed = True
            self.watch.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop after the last step."""
        if state.global_step == state.max_steps:
            self.watch.stop()


def examples(job: BenchJob, slices: IntArray) -> list[Features]:
    """Token classification examples from (n, 2) starts and stops of slices of the split."""
    split = job.split
    result = []
    for start, stop in slices:
        words = split.words[start:stop]
        result.append(
            {
                "input_ids": split.token_ids[start:stop].tolist(),
                "attention_mask": [1] * int(stop - start),
                "labels": np.where(words >= 0, split.labels[words], IGNORED).tolist(),
            }
        )
    return result


def arguments(
    config: Config, batch_size: int, num_steps: int, num_examples: int, folder: str
) -> TrainingArguments:
    """The trainer's settings."""
    return TrainingArguments(
        output_dir=folder,
        max_steps=num_steps,
        learning_rate=learning_rate(config),
        per_device_train_batch_size=min(batch_size, num_examples),
        train_sampling_strategy="group_by_length",
        max_grad_norm=config.optimizer.clip_norm,
        weight_decay=config.optimizer.weight_decay,
        use_cpu=True,
        bf16=config.precision == "bf16",
        seed=config.run.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def train(
    job: BenchJob, model: Tagger, data: list[Features], batch_tokens: float, timer: PhaseTimer,
    num_steps: int,
) -> None:  # fmt: skip
    """Train one model in batches of about `batch_tokens` real tokens."""
    mean_tokens = sum(len(e["input_ids"]) for e in data) / len(data)
    batch_size = max(1, round(batch_tokens / mean_tokens))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=arguments(
                job.config, batch_size, timer.num_warm_up_steps + num_steps, len(data), folder
            ),
            train_dataset=data,
            data_collator=DataCollatorForTokenClassification(job.blueprint.tokenizer()),
            callbacks=[timer],
        )
        hook = model.register_forward_pre_hook(timer.count, with_kwargs=True)
        trainer.train()
        hook.remove()


def combined(
    teacher: PhaseTimer, student: PhaseTimer, num_steps: int, context_tokens_per_window_token: float
) -> SideRun:
    """Both phases over the tokens of the teacher's.

    The student's phase is scaled to the windows of those contexts.
    """
    scale = teacher.num_tokens / (student.num_tokens * context_tokens_per_window_token)
    wall_s = teacher.watch.wall_s + student.watch.wall_s * scale
    return SideRun(
        "trainer",
        num_steps,
        teacher.num_tokens,
        teacher.num_positions,
        round(student.num_positions * scale),
        wall_s,
        CORES * wall_s,
    )


def run(job: BenchJob, num_steps: int, num_warm_up_steps: int) -> SideRun:
    """Train the teacher, then the student."""
    torch.set_num_threads(CORES)
    set_seed(job.config.run.seed)
    split = job.split
    table, teacher, student = job.models()
    offsets = split.context_offsets
    contexts = examples(job, np.stack([offsets[:-1], offsets[1:]], axis=1))
    windows = examples(job, split.windows)
    steps = range(num_warm_up_steps, num_warm_up_steps + num_steps)
    lengths = split.context_lengths
    batch_tokens = float(np.mean([lengths[job.plan.contexts(s)].sum() for s in steps]))
    timers = PhaseTimer(num_warm_up_steps), PhaseTimer(num_warm_up_steps)
    train(
        job, Tagger(table, teacher.backbone, teacher.head), contexts, batch_tokens, timers[0],
        num_steps,
    )  # fmt: skip
    train(
        job, Tagger(table, student.backbone, student.head), windows, batch_tokens, timers[1],
        num_steps,
    )  # fmt: skip
    ratio = len(split.token_ids) / float(np.diff(split.windows, axis=1).sum())
    return combined(*timers, num_steps, ratio)


def main(
    output: Annotated[Path, typer.Option(help="JSON file of the measurement.")],
    config: Annotated[Path, typer.Option(help="Config of the job.")] = CONFIG,
    steps: Annotated[int, typer.Option(help="Timed steps of each model.")] = 8,
    warm_up: Annotated[int, typer.Option(help="Steps before them.")] = 2,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
) -> None:
    """Time `Trainer`."""
    write_runs([run(BenchJob.load(config, precision), steps, warm_up)], output)


if __name__ == "__main__":
    typer.run(main)
