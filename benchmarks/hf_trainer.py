"""What `transformers.Trainer` reaches with the teacher's backbone alone, sentence by sentence.

The quality to compare with: the same model, sentences, epochs and metric, but no document around a
sentence, no student, no tied table. Settings are the best of those tried on validation.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from benchmarks.common import (
    DEFAULT_DATA,
    DEFAULT_MODEL,
    EncodedCorpus,
    encode_corpus,
    torch_threads,
    write_json,
)
from tsarch.data.tokenizer import resolve_model_path
from tsarch.records import IGNORED

EVALUATED = ("validation", "test")


@dataclass(frozen=True)
class Settings:
    """One training run."""

    num_epochs: int = 5
    learning_rate: float = 3e-4
    """Peak of the linear warm-up and decay."""
    batch_size: int = 16
    """Sentences of a batch."""
    seed: int = 0
    """Seed of the head, the order of sentences and dropout."""
    warmup: float = 0.1
    """Share of all steps in which the rate rises."""
    weight_decay: float = 0.01
    max_tokens: int = 512
    """Length at which a sentence is cut, special tokens included."""


@dataclass(frozen=True)
class Scores:
    """Strict entity scores over words, in [0, 1], micro-averaged."""

    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class TrainerResult:
    """Scores of the weights that were best on validation, and what they cost."""

    settings: Settings
    num_threads: int
    before: dict[str, Scores]
    """Split → scores with the pretrained backbone and a random head."""
    after: dict[str, Scores]
    """Split → scores after training."""
    validation_f1: list[float]
    """After each epoch."""
    train_s: float
    """Wall time inside epochs."""
    total_s: float
    """Wall time of `Trainer.train`: also evaluating and keeping weights after each epoch."""


class EpochTimer(TrainerCallback):  # type: ignore[misc]
    """Adds up the wall time of epochs, without what the trainer does between them."""

    def __init__(self) -> None:
        self.train_s = 0.0
        self._started_s = 0.0

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._started_s = time.perf_counter()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop it; evaluation comes after this event."""
        self.train_s += time.perf_counter() - self._started_s


def run(
    data: Path = DEFAULT_DATA,
    settings: Settings = Settings(),
    *,
    model: str = DEFAULT_MODEL,
    num_threads: int | None = None,
) -> TrainerResult:
    """Train on `data` and score validation and test, before and after.

    Args:
        data: folder of train, validation and test.jsonl.
        model: hub name, folder or `package:` path.
        num_threads: CPU threads; None: torch's default.

    Raises:
        ValueError: an evaluated word has no label, so that scores would not be over all words.
    """
    corpus = encode_corpus(data, model, settings.max_tokens)
    if any(corpus.num_unlabelled[name] for name in EVALUATED):
        raise ValueError(f"words without a label: {corpus.num_unlabelled}")
    with torch_threads(num_threads) as threads, tempfile.TemporaryDirectory() as folder:
        timer = EpochTimer()
        trainer = build_trainer(corpus, settings, model, folder)
        trainer.add_callback(timer)
        before = _scores(trainer, corpus)
        started_s = time.perf_counter()
        trainer.train()
        total_s = time.perf_counter() - started_s
        history = [e["eval_f1"] for e in trainer.state.log_history if "eval_f1" in e]
        return TrainerResult(
            settings=settings,
            num_threads=threads,
            before=before,
            after=_scores(trainer, corpus),
            validation_f1=history,
            train_s=timer.train_s,
            total_s=total_s,
        )


def build_trainer(corpus: EncodedCorpus, settings: Settings, model: str, folder: str) -> Trainer:
    """A trainer that keeps the weights of the epoch with the best F1 on validation.

    Args:
        folder: where it keeps them.
    """
    set_seed(settings.seed)
    trainer = Trainer(
        model=AutoModelForTokenClassification.from_pretrained(
            resolve_model_path(model),
            trust_remote_code=False,
            id2label=dict(enumerate(corpus.labels)),
            label2id={label: place for place, label in enumerate(corpus.labels)},
        ),
        args=arguments(settings, folder),
        train_dataset=corpus.splits["train"],
        eval_dataset=corpus.splits["validation"],
        data_collator=DataCollatorForTokenClassification(corpus.tokenizer),
        compute_metrics=lambda prediction: entity_scores(prediction, corpus.labels),
    )
    trainer.remove_callback(PrinterCallback)  # stdout is for the result
    return trainer


def arguments(settings: Settings, folder: str) -> TrainingArguments:
    """The trainer's settings; it keeps the weights that are best on validation in `folder`."""
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=settings.num_epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        seed=settings.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_only_model=True,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="f1",
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )


def _scores(trainer: Trainer, corpus: EncodedCorpus) -> dict[str, Scores]:
    result = {}
    for name in EVALUATED:
        metrics = trainer.evaluate(corpus.splits[name])
        result[name] = Scores(*(metrics[f"eval_{key}"] for key in ("f1", "precision", "recall")))
    return result


def entity_scores(prediction: EvalPrediction, labels: Sequence[str]) -> dict[str, float]:
    """Strict F1, precision and recall of entities, from the first sub-token of each word.

    Args:
        prediction: logits (sentences, tokens, num_labels) and label ids (sentences, tokens).
    """
    guesses = np.argmax(prediction.predictions, axis=-1)
    gold_tags, guessed_tags = [], []
    for gold, guess in zip(prediction.label_ids, guesses, strict=True):
        words = gold != IGNORED
        gold_tags.append([labels[i] for i in gold[words]])
        guessed_tags.append([labels[i] for i in guess[words]])
    report = classification_report(
        gold_tags, guessed_tags, mode="strict", scheme=IOB2, output_dict=True, zero_division=0
    )
    average = report["micro avg"]
    return {
        "f1": float(average["f1-score"]),
        "precision": float(average["precision"]),
        "recall": float(average["recall"]),
    }


def main(
    data: Annotated[Path, typer.Option(help="Folder of the JSON Lines files.")] = DEFAULT_DATA,
    model: Annotated[str, typer.Option(help="Hub name, folder or package: path.")] = DEFAULT_MODEL,
    max_epochs: Annotated[int, typer.Option(help="Passes over the training data.")] = (
        Settings.num_epochs
    ),
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = (
        Settings.learning_rate
    ),
    batch_size: Annotated[int, typer.Option(help="Sentences of a batch.")] = Settings.batch_size,
    seed: Annotated[int, typer.Option(help="Seed of head, order and dropout.")] = Settings.seed,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: torch's.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file of the result.")] = None,
) -> None:
    """Fine-tune the backbone with `transformers.Trainer` and print the result as JSON."""
    settings = Settings(
        num_epochs=max_epochs, learning_rate=learning_rate, batch_size=batch_size, seed=seed
    )
    with redirect_stdout(sys.stderr):  # where accelerate's and DeepSpeed's messages go instead
        result = run(data, settings, model=model, num_threads=threads)
    write_json(result, output)


if __name__ == "__main__":
    typer.run(main)
