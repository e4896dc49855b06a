"""What `benchmarks.generation` writes: an instruct model's answers to chats, or a run's texts."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from tsarch.blueprint import resolve
from tsarch.config_loading import load_config
from tsarch.pair.generation import Prompt, prompts_of
from tsarch.pair.reading import Halves
from tsarch.pair.writing import WritingSpec
from tsarch.tasks.decoding import DecodingSpec


@dataclass(frozen=True)
class Case:
    """A model, and what it writes from."""

    name: str
    halves: Halves
    hf: Any
    """The same model of transformers; None: there is none to compare with."""
    prompts: list[Prompt]
    spec: WritingSpec


def transformers_model(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    is_seq2seq = AutoConfig.from_pretrained(folder, trust_remote_code=False).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=dtype).eval()


def model_cases(
    folder: Path,
    files: dict[str, str],
    count: int,
    new_tokens: int,
    dtype: torch.dtype,
) -> list[Case]:
    """An instruct model, asked by its own template of chats."""
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not there: run `make smollm2`, or give --model")
    halves = instruct_halves(folder, dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    spec = causal_spec(int(tokenizer.eos_token_id), new_tokens)
    hf = transformers_model(folder, dtype)
    return [
        Case(name, halves, hf, _chats(Path(file), tokenizer, count), spec)
        for name, file in files.items()
    ]


def instruct_halves(folder: Path, dtype: torch.dtype) -> Halves:
    """A causal model by itself, as a teacher."""
    from tsarch.stage.build import build_pair
    from tsarch.topology import Stage

    changes = [f"teacher.model={folder}"]
    blueprint = resolve(load_config("configs/summarization.yaml", changes))
    pair = build_pair(blueprint, {"contexts": None}, dtype=dtype, stages=[Stage.TEACHER])
    return pair.halves(64)


def run_case(
    run: Path,
    rows: Path | None,
    name: str | None,
    exported: Path | None,
    count: int,
    precision: str,
    dtype: torch.dtype,
) -> Case:
    """A run's teacher on the rows of its test split."""
    from tsarch.data.tokenizer import end_token
    from tsarch.prepare import prepare_split
    from tsarch.rank.generation_spec import writing_spec
    from tsarch.run.saved_run import open_run, saved_pair

    blueprint, task = open_run(run)
    if rows is not None:
        blueprint = blueprint.altered(data={"test": str(rows)})
    pair = saved_pair(run, precision="bf16" if precision == "bf16" else "fp32")
    split = prepare_split(blueprint, "test", task.labels).splits["test"]
    prompts = prompts_of(split, range(min(count, split.num_contexts)))
    spec = writing_spec(blueprint, end_token(blueprint.tokenizer()))
    decoding = replace(spec.decoding, num_beams=1)
    hf = None if exported is None else transformers_model(exported, dtype)
    halves = pair.halves(blueprint.window_tokens)
    return Case(name or task.task, halves, hf, prompts, replace(spec, decoding=decoding))


def causal_spec(end: int, new_tokens: int) -> WritingSpec:
    decoding = DecodingSpec(1, 1.0, False, 1.0, 0, 1.0, 0, new_tokens, end)
    return WritingSpec(decoding, use_cache=True, batch=1, seed=0)


def _chats(file: Path, tokenizer: Any, count: int) -> list[Prompt]:
    """Rows in a shuffled order: documents to be summarised, or histories to be answered."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    return [Prompt(np.array(_chat(row, tokenizer)), 0) for row in rows[:count]]


def _chat(row: dict[str, Any], tokenizer: Any) -> list[int]:
    turns = chat_turns(row, tokenizer)
    options = {"add_generation_prompt": True, "return_dict": False}
    return list(tokenizer.apply_chat_template(turns, **options))


def chat_turns(row: dict[str, Any], tokenizer: Any) -> list[dict[str, str]]:
    """A row as a chat of at most about 320 tokens, the oldest turns left out."""
    if "document" in row:
        cut = tokenizer(row["document"], add_special_tokens=False).input_ids[:256]
        asked = "Summarize this abstract in one sentence.\n\n" + tokenizer.decode(cut)
        turns = [{"role": "user", "content": asked}]
    else:
        names = ("user", "assistant")
        turns = [{"role": names[i % 2], "content": t} for i, t in enumerate(row["history"])]
    while True:
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        if len(ids) <= 320 or len(turns) < 3:
            return turns
        turns = turns[2:]
