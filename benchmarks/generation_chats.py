"""Chats of `benchmarks.generation` with what an instruct model answers by itself, as rows of the
task `dialogue`: a drafter learns from its teacher's own texts.

`python -m benchmarks.generation_chats OUTPUT`: OUTPUT/train.jsonl and validation.jsonl of all tasks
together, and test-TASK.jsonl.
The template's turns are the history, so that contexts have the tokens of the template, but for a
space before every turn.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.generation_cases import causal_spec, chat_turns, instruct_halves
from tsarch.pair.generation import Prompt
from tsarch.pair.reading import Halves
from tsarch.pair.writing import Writing

_FOLDERS = {"summaries": Path("configs/scitldr"), "dialogue": Path("configs/sgd")}
_BATCH = 32


def main(
    output: Path,
    model: Path = Path("models/smollm2"),
    train: Annotated[int, typer.Option(help="Rows of each task.")] = 500,
    others: Annotated[int, typer.Option(help="Rows of validation, of each task.")] = 16,
    test: Annotated[int, typer.Option(help="Rows of test, of each task.")] = 60,
    tasks: Annotated[list[str] | None, typer.Option(help="summaries, dialogue: both.")] = None,
    new_tokens: int = 64,
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    threads: int = 1,
) -> None:
    """Let the model answer, and write what it said."""
    from transformers import AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    halves = instruct_halves(model, torch.bfloat16 if precision == "bf16" else torch.float32)
    output.mkdir(parents=True, exist_ok=True)
    for split, count in {"test": test, "validation": others, "train": train}.items():
        rows: list[dict[str, Any]] = []
        for task in tasks or list(_FOLDERS):
            file = _FOLDERS[task] / f"{split}.jsonl"
            own = _answered(halves, tokenizer, _chosen(file, count), new_tokens)
            if split == "test":
                _write(output / f"test-{task}.jsonl", own)
            rows += own
        if split != "test":
            _write(output / f"{split}.jsonl", rows)


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
    print(f"{file}: {len(rows)} rows", flush=True)


def _chosen(file: Path, count: int) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    return rows[:count]


def _answered(
    halves: Halves, tokenizer: Any, rows: list[dict[str, Any]], new_tokens: int
) -> list[dict[str, Any]]:
    """Rows with the answers, those of like lengths written together; without empty ones."""
    spec = replace(causal_spec(int(tokenizer.eos_token_id), new_tokens), batch=_BATCH)
    chats = [chat_turns(row, tokenizer) for row in rows]

    def rendered(turns: list[dict[str, str]], tokenize: bool) -> Any:
        options = {"add_generation_prompt": True, "return_dict": False}
        return tokenizer.apply_chat_template(turns, tokenize=tokenize, **options)

    prompts = [Prompt(np.array(rendered(own, True)), 0) for own in chats]
    order = sorted(range(len(rows)), key=lambda row: len(prompts[row].token_ids))
    written = Writing(halves, spec, 0.5).write([prompts[row] for row in order], "teacher")
    found = []
    for row, text in zip(order, written, strict=True):
        *history, _ = rendered(chats[row], False).split(tokenizer.eos_token)
        answer = tokenizer.decode(text.tokens)
        if answer.split():
            found.append({"history": history, "response": answer})
    return found


if __name__ == "__main__":
    typer.run(main)
