"""What writing texts costs: transformers' `generate`, plain and with its prompt lookup or an
assistant, beside tsarch's plain loop and its loop with proposed tokens.

`make bench-generate`. Every arm writes the same prompts in turns, so that what else the machine
does meets all of them. Times are those of the process's CPU; of one thread they are what a quiet
machine takes. Rows are written as they are measured (`--resume` leaves out what is there), and as a
table (`benchmarks.generation_table`).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.generation_cases import Case, model_cases, run_case, transformers_model
from benchmarks.generation_table import table
from tsarch.pair.generation import Prompt
from tsarch.pair.writing import Writing, WritingSpec
from tsarch.written import Passes

_RESULTS = Path("benchmarks/results/generation.json")
_ROWS = Path("runs/bench-generate/rows.json")
"""What has been measured on this machine, for `--resume`."""
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
    passes: Passes = field(default_factory=Passes)
    """Of tsarch's own loop."""


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
class Settings:
    """What all rows of a call share; rows of other settings aren't compared with them."""

    model: str
    precision: str
    threads: int
    prompts: int
    new_tokens: int


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
    rows: Annotated[
        Path | None, typer.Option(help="Rows in place of the run's own test split.")
    ] = None,
    assistant: Annotated[
        Path | None, typer.Option(help="A smaller model of the same vocabulary, for `generate`.")
    ] = None,
    prompts: int = 48,
    new_tokens: int = 64,
    name: Annotated[str | None, typer.Option(help="What a run's rows are called.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Prompts at a time.")] = None,
    precision: str = "bf16",
    exact: Annotated[bool, typer.Option(help="Measure `decoding.exact` too.")] = False,
    short: Annotated[bool, typer.Option(help="6 prompts, 24 tokens, batches of 1 and 4.")] = False,
    resume: Annotated[bool, typer.Option(help="Leave out what has been measured.")] = False,
    threads: int = 1,
) -> None:
    """Measure every arm and print a table; the whole is written to benchmarks/results."""
    torch.set_num_threads(threads)
    if short:
        prompts, new_tokens = min(prompts, 6), min(new_tokens, 24)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    settings = Settings(str(run or model), precision, threads, prompts, new_tokens)
    if run is not None:
        cases = [run_case(run, rows, name, exported, prompts, precision, dtype)]
    else:
        files = dict(item.split("=", 1) for item in data) if data else _FILES
        cases = model_cases(model, files, prompts, new_tokens, dtype)
    helper = None if assistant is None else transformers_model(assistant, dtype)
    for case in cases:
        for size in batch or ([1, 4] if short else [1, 4, 16]):
            own = {"task": case.name, "batch": size, **asdict(settings)}
            if resume and any(own.items() <= row.items() for row in _known()):
                continue
            measured = _measured(case, size, _arms(case, size, helper, exact))
            found = [own | row for row in measured]
            for row in found:
                print(_line(row), flush=True)
            if not short:
                _write(own, found)


def _known() -> list[dict[str, Any]]:
    """Rows of earlier calls."""
    found: list[dict[str, Any]] = json.loads(_ROWS.read_text()) if _ROWS.exists() else []
    return found


def _write(own: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Put rows in the place of those of the same settings."""
    kept = [row for row in _known() if not own.items() <= row.items()]
    text = json.dumps(kept + rows, indent=1) + "\n"
    _ROWS.parent.mkdir(parents=True, exist_ok=True)
    for file in (_ROWS, _RESULTS):
        file.write_text(text, encoding="utf-8")
    _RESULTS.with_suffix(".md").write_text(table(kept + rows), encoding="utf-8")


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
    # A run may be one that proposes by itself.
    spec = replace(case.spec, batch=size, num_proposed=0)
    arms["plain"] = _ours(case, spec)
    arms["speculative"] = _ours(case, replace(spec, num_proposed=-1, sources=("prompt",)))
    student = case.halves.student
    if student is not None and student.drafter is not None:
        for sources in (("drafter",), ("prompt", "drafter")):
            name = f"speculative, {' and '.join(sources)}"
            arms[name] = _ours(case, replace(spec, num_proposed=-1, sources=sources))
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
    return [_row(name, results) for name in arms]


def _row(name: str, results: dict[str, Measured]) -> dict[str, Any]:
    own = results[name]
    row: dict[str, Any] = {"arm": name}
    for with_prompt in (False, True):
        suffix = "_with_prompt" if with_prompt else ""
        seconds = own.seconds(with_prompt)
        row[f"ms_a_token{suffix}"] = statistics.median(seconds) * 1e3
        row[f"against{suffix}"] = {
            other: statistics.median(a / b for a, b in zip(than.seconds(with_prompt), seconds))
            for other, than in results.items()
        }
    base = results["plain, exact" if name.endswith("exact") else "plain"]
    texts = [(a, b) for x, y in zip(base.texts, own.texts) for a, b in zip(x.tokens, y.tokens)]
    row["same_texts"] = sum(a == b for a, b in texts)
    row["texts"] = len(texts)
    passes = sum((part.passes for part in own.texts), Passes())
    row["tokens_a_pass"] = passes.tokens_a_pass if passes.num_texts else None
    return row


def _line(row: dict[str, Any]) -> str:
    def told(suffix: str) -> str:
        times, ratio = row[f"ms_a_token{suffix}"], row[f"against{suffix}"]["plain"]
        return f"{times:7.1f} ms a token ({ratio:.2f} × plain)"

    return (
        f"{row['task']:10} batch {row['batch']:2}  {row['arm']:24} {told('')}, with the prompt "
        f"{told('_with_prompt')}; {row['same_texts']} of {row['texts']} texts are the plain loop's"
    )


def _ours(case: Case, spec: WritingSpec) -> Arm:
    writing = Writing(case.halves, spec, 0.5)

    def write(prompts: Sequence[Prompt]) -> Texts:
        writing.passes = Passes()
        start, wall = time.process_time(), time.perf_counter()
        written = writing.write(prompts, "teacher")
        seconds = time.process_time() - start
        # The loop counts by the clock on the wall: its share is taken.
        share = writing.passes.prompt_s / (time.perf_counter() - wall)
        tokens = [own.tokens for own in written]
        return Texts(tokens, seconds, seconds * share, writing.passes)

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


if __name__ == "__main__":
    typer.run(main)
