"""What `transformers.Trainer` reaches in classification with the teacher's backbone alone.

The same as `hf_trainer.py` for texts with a label: `AutoModelForSequenceClassification`, row by
row, the weights of the epoch with the best macro F1 on validation.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PrinterCallback,
    Trainer,
    set_seed,
)

from benchmarks.common import DEFAULT_MODEL, torch_threads, write_json
from benchmarks.hf_trainer import EVALUATED, Settings, arguments
from tsarch.data.tokenizer import load_tokenizer, resolve_model_path

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ClassifierResult:
    """Scores of the weights that were best on validation, and what they cost."""

    settings: Settings
    after: dict[str, dict[str, float]]
    """Split → metric → value in [0, 1] after training."""
    total_s: float
    """Wall time of `Trainer.train`."""


def run(data: Path, settings: Settings, model: str, num_threads: int | None) -> ClassifierResult:
    """Train on the files of a folder and score validation and test."""
    splits = {name: _rows(data / f"{name}.jsonl") for name in ("train", *EVALUATED)}
    labels = sorted({row["label"] for rows in splits.values() for row in rows})
    tokenizer = load_tokenizer(model)

    def encoded(rows: Rows) -> Rows:
        texts = tokenizer(
            [row["text"] for row in rows], truncation=True, max_length=settings.max_tokens
        )
        ids = texts["input_ids"]
        return [{"input_ids": i, "labels": labels.index(r["label"])} for i, r in zip(ids, rows)]

    with torch_threads(num_threads), tempfile.TemporaryDirectory() as folder:
        set_seed(settings.seed)
        trainer = Trainer(
            model=AutoModelForSequenceClassification.from_pretrained(
                resolve_model_path(model), trust_remote_code=False, num_labels=len(labels)
            ),
            args=arguments(settings, folder),
            train_dataset=encoded(splits["train"]),
            eval_dataset=encoded(splits["validation"]),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=_scores,
        )
        trainer.remove_callback(PrinterCallback)  # stdout is for the result
        started_s = time.perf_counter()
        trainer.train()
        total_s = time.perf_counter() - started_s
        after = {}
        for name in EVALUATED:
            metrics = trainer.evaluate(encoded(splits[name]))
            after[name] = {key: metrics[f"eval_{key}"] for key in ("f1", "accuracy")}
        return ClassifierResult(settings, after, total_s)


def _rows(file: Path) -> Rows:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _scores(prediction: EvalPrediction) -> dict[str, float]:
    guesses = np.argmax(prediction.predictions, axis=-1)
    gold = prediction.label_ids
    return {
        "f1": float(f1_score(gold, guesses, average="macro")),
        "accuracy": float(accuracy_score(gold, guesses)),
    }


def main(
    data: Annotated[Path, typer.Option(help="Folder of the JSON Lines files.")],
    model: Annotated[str, typer.Option(help="Hub name, folder or package: path.")] = DEFAULT_MODEL,
    max_epochs: Annotated[int, typer.Option(help="Passes over the training data.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of head, order and dropout.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: torch's.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file of the result.")] = None,
) -> None:
    """Fine-tune the backbone with `transformers.Trainer` and print the result as JSON."""
    settings = replace(Settings(), num_epochs=max_epochs, seed=seed)
    with redirect_stdout(sys.stderr):  # where accelerate's messages go instead
        result = run(data, settings, model, threads)
    write_json(result, output)


if __name__ == "__main__":
    typer.run(main)
