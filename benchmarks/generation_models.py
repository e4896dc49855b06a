"""The trained models of `benchmarks.generation`: a summariser, all of whose teacher was fine-tuned,
a small translator with an encoder and a decoder, and a drafter of an instruct model's answers.
Trained and exported once, into runs/bench-generate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

FOLDER = Path("runs/bench-generate")
CHATS = (FOLDER / "chats").resolve()
END = "<|im_end|>"
MODELS = {
    "summarizer": (
        "configs/summarization.yaml",
        *("teacher.freeze=none", "teacher.top_k=0", "schedule.max_steps=60"),
        *("evaluation.before=false", "decoding.max_texts=4"),
    ),
    "translator": (
        "configs/translation-t5.yaml",
        *("schedule.max_steps=250", "evaluation.before=false", "decoding.max_texts=4"),
    ),
    "drafter": (
        "configs/drafter.yaml",
        *("task.name=dialogue", f"task.target_prefix={END}\n<|im_start|>assistant\n"),
        *("task.max_target_tokens=64", "teacher.max_tokens=448", "student.max_tokens=128"),
        *(f"data.{split}={CHATS}/{split}.jsonl" for split in ("train", "validation")),
        *(f"data.test={CHATS}/test-dialogue.jsonl", "schedule.epochs=5"),
        *("evaluation.every_epochs=5", "evaluation.before=false", "decoding.max_texts=4"),
    ),
}
"""Name → config and what is changed in it."""


def main(
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    models: Annotated[
        list[str] | None, typer.Option(help="summarizer, translator, drafter: all.")
    ] = None,
) -> None:
    """Train and export what is not there yet, one thread each."""
    if not (CHATS / "train.jsonl").exists():
        _run("benchmarks.generation_chats", str(CHATS), "--precision", precision)
    for name in models or list(MODELS):
        config, *changed = MODELS[name]
        run = FOLDER / name
        changes = [*changed, f"precision={precision}", f"run.folder={run}"]
        changes += ["topology.runner=local", "topology.threads=1"]
        if not (run / "summary.json").exists():
            _run("tsarch", "train", config, *(part for own in changes for part in ("--set", own)))
        if not (exported := FOLDER / f"{name}-exported").exists():
            _run("tsarch", "export", str(run), str(exported))


def _run(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    typer.run(main)
