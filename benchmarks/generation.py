"""What writing texts costs: transformers' `generate`, plain and with its prompt lookup or an
assistant, beside tsarch's plain loop and its loop with proposed tokens.

`make bench-generate` (`make smollm2` first). Every arm writes the same prompts in turns, so that
what else the machine does meets all of them. Times are those of the process's CPU; of one thread
they are what a quiet machine takes.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from tsarch.blueprint import resolve
from tsarch.config_loading import load_config
from tsarch.pair.generation import Prompt, prompts_of
from tsarch.pair.reading import Halves
from tsarch.pair.writing import Writing, WritingSpec
from tsarch.tasks.decoding import DecodingSpec

_RESULTS = Path("benchmarks/results/generation.json")
_LOOKUP_TOKENS = 5
"""Of transformers' prompt lookup at a time: what the experiment before this one found best."""
_FILES = {"summaries": "configs/scitldr/test.jsonl", "dialogue": "configs/sgd/test.jsonl"}


@dataclass(frozen=True)
class Texts:
    """What an arm made of some prompts."""

    tokens: list[list[int]]
    seconds: float
    prompt_s: float
    """Of the prompts' own pass and each first token."""


Arm = Callable[[Sequence[Prompt]], Texts]


@dataclass
class Measured:
    """An arm's prompts, one after another."""

    texts: list[Texts] = field(default_factory=list)

    def seconds(self, with_prompt: bool) -> list[float]:
        """Of each batch of prompts, a token."""
        found = []
        for own in self.texts:
            num_tokens = sum(len(tokens) + 1 for tokens in own.tokens)
            first = 0 if with_prompt else len(own.tokens)
            spent = own.seconds - (0.0 if with_prompt else own.prompt_s)
            found.append(spent / max(num_tokens - first, 1))
        return found


@dataclass(frozen=True)
class Case:
    """A model, and what it writes from."""

    name: str
    halves: Halves
    hf: Any
    """The same model of transformers; None: there is none to compare with."""
    prompts: list[Prompt]
    spec: WritingSpec


def main(
    model: Annotated[Path, typer.Option(help="Causal language model's folder.")] = Path(
        "models/smollm2"
    ),
    run: Annotated[
        Path | None, typer.Option(help="A run in place of `model`: its teacher.")
    ] = None,
    exported: Annotated[
        Path | None, typer.Option(help="Its teacher, exported: what `generate` runs.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE of rows with `document` or `history`.")
    ] = None,
    assistant: Annotated[
        Path | None, typer.Option(help="A smaller model of the same vocabulary, for `generate`.")
    ] = None,
    prompts: int = 40,
    new_tokens: int = 64,
    batch: Annotated[list[int] | None, typer.Option(help="Prompts at a time.")] = None,
    precision: str = "bf16",
    exact: Annotated[bool, typer.Option(help="Measure `decoding.exact` too.")] = False,
    short: Annotated[bool, typer.Option(help="6 prompts, 24 tokens, batches of 1 and 4.")] = False,
    threads: int = 1,
) -> None:
    """Measure every arm and print a table; the whole is written to benchmarks/results."""
    torch.set_num_threads(threads)
    if short:
        prompts, new_tokens = min(prompts, 6), min(new_tokens, 24)
    batches = batch or ([1, 4] if short else [1, 4, 16])
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if run is not None:
        cases = [_run_case(run, exported, prompts, precision, dtype)]
    else:
        files = dict(item.split("=", 1) for item in data) if data else _FILES
        cases = _model_cases(model, files, prompts, new_tokens, dtype)
    helper = None if assistant is None else _causal(assistant, dtype)
    found: list[dict[str, Any]] = []
    for case in cases:
        for size in batches:
            arms = _arms(case, size, helper, exact)
            found += _measured(case, size, arms)
            for row in found[-len(arms) :]:
                print(_line(row), flush=True)
    if not short:
        about = {"precision": precision, "threads": threads, "prompts": prompts}
        _RESULTS.write_text(json.dumps({**about, "rows": found}, indent=1) + "\n")


def _arms(case: Case, size: int, assistant: Any, exact: bool) -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    if case.hf is not None:
        arms["generate"] = _generate(case)
        if size == 1:  # transformers writes one text at a time with either
            lookup = {"prompt_lookup_num_tokens": _LOOKUP_TOKENS}
            if not case.hf.config.is_encoder_decoder:
                arms["generate, prompt lookup"] = _generate(case, **lookup)
            if assistant is not None:
                arms["generate, assistant"] = _generate(case, assistant_model=assistant)
    spec = replace(case.spec, batch=size)
    arms["plain"] = _ours(case, spec)
    arms["speculative"] = _ours(case, replace(spec, num_proposed=-1))
    if exact:
        arms["plain, exact"] = _ours(case, replace(spec, exact=True))
        arms["speculative, exact"] = _ours(case, replace(spec, exact=True, num_proposed=-1))
    return arms


def _measured(case: Case, size: int, arms: dict[str, Arm]) -> list[dict[str, Any]]:
    """Every arm on every batch of prompts; in turns, the first of them twice, to warm up."""
    results = {name: Measured() for name in arms}
    parts = [case.prompts[at : at + size] for at in range(0, len(case.prompts), size)]
    for arm in arms.values():
        arm(parts[0])
    for number, part in enumerate(parts):
        names = list(arms)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            results[name].texts.append(arms[name](part))
    return [_row(case, size, name, results) for name in arms]


def _row(case: Case, size: int, name: str, results: dict[str, Measured]) -> dict[str, Any]:
    own, plain = results[name], results["plain"]
    row: dict[str, Any] = {"task": case.name, "batch": size, "arm": name}
    for with_prompt in (False, True):
        pairs = zip(plain.seconds(with_prompt), own.seconds(with_prompt), strict=True)
        suffix = "_with_prompt" if with_prompt else ""
        row[f"ms_a_token{suffix}"] = statistics.median(own.seconds(with_prompt)) * 1e3
        row[f"against_plain{suffix}"] = statistics.median(a / b for a, b in pairs)
    base = results["plain, exact" if name.endswith("exact") else "plain"]
    texts = [(a, b) for x, y in zip(base.texts, own.texts) for a, b in zip(x.tokens, y.tokens)]
    row["same_texts"] = sum(a == b for a, b in texts)
    row["texts"] = len(texts)
    return row


def _line(row: dict[str, Any]) -> str:
    def told(suffix: str) -> str:
        times, ratio = row[f"ms_a_token{suffix}"], row[f"against_plain{suffix}"]
        return f"{times:7.1f} ms a token ({ratio:.2f} × plain)"

    return (
        f"{row['task']:10} batch {row['batch']:2}  {row['arm']:24} {told('')}, with the prompt "
        f"{told('_with_prompt')}; {row['same_texts']} of {row['texts']} texts are the plain loop's"
    )


def _ours(case: Case, spec: WritingSpec) -> Arm:
    writing = Writing(case.halves, spec, 0.5)

    def write(prompts: Sequence[Prompt]) -> Texts:
        before, start, wall = writing.passes, time.process_time(), time.perf_counter()
        written = writing.write(prompts, "teacher")
        seconds = time.process_time() - start
        # The loop counts by the clock on the wall: its share is taken.
        share = (writing.passes.prompt_s - before.prompt_s) / (time.perf_counter() - wall)
        return Texts([own.tokens for own in written], seconds, seconds * share)

    return write


def _generate(case: Case, **options: Any) -> Arm:
    """transformers' own loop, on prompts padded on the left."""
    spec, hf = case.spec.decoding, case.hf
    is_seq2seq = hf.config.is_encoder_decoder

    def inputs_of(prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        own = [p.token_ids[:-1] if is_seq2seq else p.token_ids for p in prompts]
        longest = max(map(len, own))
        ids = np.zeros((len(own), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(own):
            ids[row, longest - len(tokens) :] = tokens
            mask[row, longest - len(tokens) :] = 1
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    def run(inputs: dict[str, torch.Tensor], num_tokens: int) -> tuple[Any, float]:
        start = time.process_time()
        found = hf.generate(
            **inputs,
            **options,
            do_sample=False,
            max_new_tokens=num_tokens,
            eos_token_id=spec.end,
            pad_token_id=spec.end,
        )
        return found, time.process_time() - start

    def write(prompts: Sequence[Prompt]) -> Texts:
        inputs = inputs_of(prompts)
        with torch.inference_mode():
            _, prompt_s = run(inputs, 1)
            found, seconds = run(inputs, spec.max_tokens)
        first = 1 if is_seq2seq else inputs["input_ids"].shape[1]
        texts = [row[first:].tolist() for row in found]
        ends = [own.index(spec.end) if spec.end in own else len(own) for own in texts]
        return Texts([own[:end] for own, end in zip(texts, ends)], seconds, prompt_s)

    return write


def _causal(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    is_seq2seq = AutoConfig.from_pretrained(folder, trust_remote_code=False).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=dtype).eval()


def _model_cases(
    folder: Path, files: dict[str, str], count: int, new_tokens: int, dtype: torch.dtype
) -> list[Case]:
    """An instruct model, asked by its own template of chats."""
    from transformers import AutoTokenizer

    from tsarch.stage.build import build_pair
    from tsarch.topology import Stage

    if not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not there: run `make smollm2`, or give --model")
    blueprint = resolve(load_config("configs/summarization.yaml", [f"teacher.model={folder}"]))
    pair = build_pair(blueprint, {"contexts": None}, dtype=dtype, stages=[Stage.TEACHER])
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    spec = _spec(int(tokenizer.eos_token_id), new_tokens)
    hf = _causal(folder, dtype)
    return [
        Case(name, pair.halves(64), hf, _chats(Path(file), tokenizer, count), spec)
        for name, file in files.items()
    ]


def _run_case(
    run: Path, exported: Path | None, count: int, precision: str, dtype: torch.dtype
) -> Case:
    """A run's teacher on the rows of its test split."""
    from tsarch.data.tokenizer import end_token
    from tsarch.prepare import prepare_split
    from tsarch.rank.generation_spec import writing_spec
    from tsarch.run.saved_run import open_run, saved_pair

    blueprint, task = open_run(run)
    pair = saved_pair(run, precision="bf16" if precision == "bf16" else "fp32")
    split = prepare_split(blueprint, "test", task.labels).splits["test"]
    prompts = prompts_of(split, range(min(count, split.num_contexts)))
    spec = writing_spec(blueprint, end_token(blueprint.tokenizer()))
    decoding = replace(spec.decoding, num_beams=1)
    hf = None if exported is None else _causal(exported, dtype)
    halves = pair.halves(blueprint.window_tokens)
    return Case(task.task, halves, hf, prompts, replace(spec, decoding=decoding))


def _spec(end: int, new_tokens: int) -> WritingSpec:
    decoding = DecodingSpec(1, 1.0, False, 1.0, 0, 1.0, 0, new_tokens, end)
    return WritingSpec(decoding, use_cache=True, batch=1, seed=0)


def _chats(file: Path, tokenizer: Any, count: int) -> list[Prompt]:
    """Rows in a shuffled order: documents to be summarised, or histories to be answered."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    return [Prompt(np.array(_chat(row, tokenizer)), 0) for row in rows[:count]]


def _chat(row: dict[str, Any], tokenizer: Any) -> list[int]:
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
            return list(ids)
        turns = turns[2:]


if __name__ == "__main__":
    typer.run(main)
