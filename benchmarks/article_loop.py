"""The article's own training loop, as plainly as it can be written: the speed to compare with.

One process; every sentence is padded to 128 tokens; teacher, then student, on each batch; one
AdamW over both, stepped twice. The only additions are those without which the article's code does
not run: the student adds the teacher's hidden states to its own embeddings, and has a head.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertModel

from benchmarks.common import (
    DEFAULT_DATA,
    DEFAULT_MODEL,
    Features,
    encode_corpus,
    torch_threads,
    write_json,
)
from tsarch.data.tokenizer import resolve_model_path
from tsarch.records import IGNORED

STUDENT_LAYERS = (0, 2, 5)


@dataclass(frozen=True)
class ArticleLoopResult:
    """Speed of the loop over the timed steps."""

    num_steps: int
    num_tokens: int
    """Tokens that are no padding; a sentence's tokens count once, though both models read them."""
    num_special_tokens: int
    """Those of them that only mark a sentence's start or end: two a sentence."""
    num_padded_tokens: int
    """All positions that were computed, for one of the two models."""
    train_s: float
    tokens_per_s: float
    """`num_tokens / train_s`."""
    batch_size: int
    num_threads: int
    teacher_loss: float
    """Mean over the last ten steps, in nats."""
    student_loss: float
    """Mean over the last ten steps, in nats."""


class Tagger(nn.Module):
    """A BERT encoder with a linear token head."""

    def __init__(self, encoder: BertModel, num_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(encoder.config.hidden_dropout_prob)
        self.head = nn.Linear(encoder.config.hidden_size, num_labels)

    @property
    def table(self) -> nn.Embedding:
        """The word embeddings."""
        table: nn.Embedding = self.encoder.embeddings.word_embeddings
        return table

    def forward(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, tokens, width), (batch, tokens) → hidden (batch, tokens, width) and logits
        (batch, tokens, num_labels)."""
        output = self.encoder(inputs_embeds=embeds, attention_mask=mask)
        hidden = output.last_hidden_state
        return hidden, self.head(self.dropout(hidden))


def build_models(
    model: str,
    student_layers: Sequence[int],
    num_labels: int,
    attention_dropout: float | None = None,
) -> tuple[Tagger, Tagger]:
    """Teacher, and student made of some of its layers; both own the same table.

    `attention_dropout`: None: as in the model's config.
    """
    path = resolve_model_path(model)
    hf = BertConfig.from_pretrained(path)
    if attention_dropout is not None:
        hf.attention_probs_dropout_prob = attention_dropout
    teacher = BertModel.from_pretrained(path, config=hf, add_pooling_layer=False)
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(student_layers)
    student = BertModel(config, add_pooling_layer=False)
    student.embeddings.load_state_dict(teacher.embeddings.state_dict())
    for target, source in zip(student.encoder.layer, student_layers, strict=True):
        target.load_state_dict(teacher.encoder.layer[source].state_dict())
    student.embeddings.word_embeddings = teacher.embeddings.word_embeddings
    return Tagger(teacher, num_labels).train(), Tagger(student, num_labels).train()


def train_batch(
    teacher: Tagger,
    student: Tagger,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[Tensor],
    bf16: bool = False,
) -> tuple[float, float]:
    """The article's `train_epoch` on one batch: losses of teacher and student.

    Args:
        batch: `input_ids`, `attention_mask` and `labels`, each (batch, tokens).
        bf16: under autocast.
    """
    input_ids, mask, labels = batch
    teacher.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden, logits = teacher(teacher.table(input_ids), mask)
    teacher_loss = _loss(logits.float(), labels)
    teacher_loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()

    student.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        _, logits = student(student.table(input_ids) + hidden.detach(), mask)
    student_loss = _loss(logits.float(), labels)
    student_loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return teacher_loss.item(), student_loss.item()


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def run(
    data: Path = DEFAULT_DATA,
    *,
    num_steps: int | None = None,
    num_epochs: int = 1,
    batch_size: int = 16,
    max_tokens: int = 128,
    num_threads: int = 2,
    teacher: str = DEFAULT_MODEL,
    student_layers: Sequence[int] = STUDENT_LAYERS,
    learning_rate: float = 5e-5,
    attention_dropout: float | None = None,
    bf16: bool = False,
    num_warmup_steps: int = 1,
    seed: int = 0,
) -> ArticleLoopResult:
    """Train on the training split of `data` and time it.

    Args:
        data: folder of train, validation and test.jsonl.
        num_steps: batches to time; None: all of `num_epochs` passes over the data.
        batch_size: sentences of a batch.
        max_tokens: length of every sentence, padding and special tokens included.
        num_threads: CPU threads.
        teacher: BERT model's hub name, folder or `package:` path.
        student_layers: layers of the teacher that the student starts from.
        attention_dropout: probability; None: as in the model's config.
        learning_rate: AdamW's; constant. The article names none, and it doesn't change the speed.
        bf16: multiply in bf16, by torch's autocast.
        num_warmup_steps: batches before the clock starts (the first one allocates memory).
    """
    corpus = encode_corpus(data, teacher, max_tokens, pad=True, splits=["train"])
    torch.manual_seed(seed)
    with torch_threads(num_threads):
        models = build_models(teacher, student_layers, len(corpus.labels), attention_dropout)
        optimizer = torch.optim.AdamW(nn.ModuleList(models).parameters(), lr=learning_rate)
        loader = DataLoader(_tensors(corpus.splits["train"]), batch_size, shuffle=True)
        batches = _forever(loader)
        for batch in itertools.islice(batches, num_warmup_steps):
            train_batch(*models, optimizer, batch, bf16)
        chosen = itertools.islice(batches, num_steps or num_epochs * len(loader))
        return _time(models, optimizer, chosen, batch_size, num_threads, bf16)


def _time(
    models: tuple[Tagger, Tagger],
    optimizer: torch.optim.Optimizer,
    batches: Iterator[list[Tensor]],
    batch_size: int,
    num_threads: int,
    bf16: bool,
) -> ArticleLoopResult:
    losses = []
    num_tokens = num_sentences = num_padded = 0
    started_s = time.perf_counter()
    for batch in batches:
        losses.append(train_batch(*models, optimizer, batch, bf16))
        num_tokens += int(batch[1].sum())
        num_sentences += len(batch[1])
        num_padded += batch[1].numel()
    train_s = time.perf_counter() - started_s
    last = torch.tensor(losses[-10:]).mean(dim=0).tolist()
    return ArticleLoopResult(
        num_steps=len(losses),
        num_tokens=num_tokens,
        num_special_tokens=2 * num_sentences,
        num_padded_tokens=num_padded,
        train_s=train_s,
        tokens_per_s=num_tokens / train_s,
        batch_size=batch_size,
        num_threads=num_threads,
        teacher_loss=last[0],
        student_loss=last[1],
    )


def _tensors(examples: Sequence[Features]) -> TensorDataset:
    names = ("input_ids", "attention_mask", "labels")
    return TensorDataset(*(torch.tensor([example[n] for example in examples]) for n in names))


def _forever(loader: DataLoader[tuple[Tensor, ...]]) -> Iterator[list[Tensor]]:
    """Batches of one epoch after the other, each in an order of its own."""
    while True:
        yield from loader


def main(
    data: Annotated[Path, typer.Option(help="Folder of the JSON Lines files.")] = DEFAULT_DATA,
    steps: Annotated[int | None, typer.Option(help="Batches to time; overrides --epochs.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training data.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Sentences of a batch.")] = 16,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    teacher: Annotated[str, typer.Option(help="Hub name, folder or package: path.")] = (
        DEFAULT_MODEL
    ),
    student_layers: Annotated[
        str, typer.Option(help="Layers of the teacher that start the student.")
    ] = ",".join(map(str, STUDENT_LAYERS)),
    attention_dropout: Annotated[
        float | None, typer.Option(help="Probability. Default: the model's own.")
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Multiply in bf16 (autocast).")] = False,
    warm_up: Annotated[int, typer.Option(help="Batches before the clock starts.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of heads, order and dropout.")] = 0,
    output: Annotated[Path | None, typer.Option(help="JSON file of the result.")] = None,
) -> None:
    """Time the article's training loop on CPU and print the result as JSON."""
    layers = [int(layer) for layer in student_layers.split(",")]
    result = run(
        data,
        num_steps=steps,
        num_epochs=epochs,
        batch_size=batch_size,
        num_threads=threads,
        teacher=teacher,
        student_layers=layers,
        attention_dropout=attention_dropout,
        bf16=bf16,
        num_warmup_steps=warm_up,
        seed=seed,
    )
    write_json(result, output)


if __name__ == "__main__":
    typer.run(main)
