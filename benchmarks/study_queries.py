"""Read once, ask many: how good answers are and what one costs, by how a model reads what is asked.

    python -m benchmarks.study_queries [--seeds 0,1,2] [--tasks qa,relation,ranking] [--methods …]

Each run is `tsarch train` in a process of one thread, two at a time, in bf16 where the machine
multiplies it. A finished run is not done again, and one that was interrupted goes on from its last
checkpoint. Costs are CPU time of one thread, one query a call, the best of three calls, means over
documents of the test split.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import tsarch
from benchmarks.processes import run_module
from benchmarks.study_cost import SERVED, best_ms
from benchmarks.study_queries_plan import TASKS, QueryMethod, QueryTask
from tsarch.pair.state_files import EncodedStates
from tsarch.prediction.trained_pair import TrainedPair

RUNS = Path("runs/study-queries")
OUTPUT = Path("benchmarks/results")
TIMEOUT_S = 7200.0
"""For one training run."""
_NUM_DOCUMENTS = 12
"""That costs are measured on."""
Cost = dict[str, float]
"""Milliseconds: of reading a document (0: it is read with each query), and of a query."""


def run_folder(folder: Path, task: QueryTask, method: QueryMethod, seed: int) -> Path:
    """Where a run is."""
    return folder / task.name / f"{method.name}-seed{seed}"


def train(folder: Path, task: QueryTask, method: QueryMethod, seed: int) -> None:
    """Do a run that isn't finished, from where it was.

    Raises:
        SideError: it failed; the message has the end of its output.
    """
    own = run_folder(folder, task, method, seed)
    arguments = ["train", str(method.config)]
    settings = [f"run.folder={own}", f"run.seed={seed}", *method.settings]
    if method.taught_by is not None:
        teacher = task.method(method.taught_by)
        settings.append(f"distillation.from_run={run_folder(folder, task, teacher, seed)}")
    for setting in settings:
        arguments += ["--set", setting]
    if any((own / "checkpoints").glob("step-*")):
        arguments.append("--resume")
    else:
        shutil.rmtree(own, ignore_errors=True)
    log = own.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    run_module("tsarch", arguments, log, TIMEOUT_S, threads=1)


def do_runs(
    folder: Path,
    tasks: Sequence[QueryTask],
    seeds: Sequence[int],
    run: Callable[[Path, QueryTask, QueryMethod, int], None],
    say: Callable[[str], None],
    at_once: int = 2,
) -> None:
    """Do all runs that aren't finished, some at once, seed by seed; those that are taught come when
    all others are done."""

    def do(task: QueryTask, method: QueryMethod, seed: int) -> None:
        own = run_folder(folder, task, method, seed)
        if not (own / "summary.json").exists():
            run(folder, task, method, seed)
            say(f"{task.name}: {method.name}, seed {seed}: {_score(own, task, method):.4f}")

    runs = [(task, own, seed) for seed in seeds for task in tasks for own in task.methods]
    with ThreadPoolExecutor(at_once) as pool:
        for is_taught in (False, True):
            wave = [own for own in runs if (own[1].taught_by is not None) == is_taught]
            list(pool.map(lambda own: do(*own), wave))


def _score(own: Path, task: QueryTask, method: QueryMethod) -> float:
    summary = json.loads((own / "summary.json").read_text(encoding="utf-8"))
    return float(summary["after"][method.mode][task.metric])


def scores(folder: Path, task: QueryTask, method: QueryMethod, seeds: Sequence[int]) -> list[float]:
    """The main metric on the test split of the seeds that are finished."""
    runs = [run_folder(folder, task, method, seed) for seed in seeds]
    return [_score(own, task, method) for own in runs if (own / "summary.json").exists()]


def cost_of(pair: TrainedPair, task: QueryTask, method: QueryMethod) -> Cost:
    """What a query costs a trained pair."""
    reads, asks = [], []
    for document, queries in task.documents(_NUM_DOCUMENTS):
        if not method.reads_once:
            rows = [task.row(document, query) for query in queries[:2]]
            asks += [best_ms(partial(pair.predict, [row], method.mode)) for row in rows]
            continue
        reads.append(best_ms(partial(pair.read, document)))
        context = pair.read(document)
        asks += [best_ms(partial(context.predict, own, method.mode)) for own in queries[:2]]
    return {"read": statistics.mean(reads or [0.0]), "ask": statistics.mean(asks)}


def bytes_a_token(pair: TrainedPair, task: QueryTask) -> dict[str, float]:
    """What stored states of a document take, by how they are stored."""
    ((document, queries),) = task.documents(1)
    split = pair.prepare([task.row(document, queries[0])])
    ((_, states),) = list(pair.read_missing(split, set()))[:1]
    return {
        name: EncodedStates.of(states, name).num_bytes / len(states.hidden)
        for name in ("fp32", "bf16", "int8")
    }


def summary(folder: Path, task: QueryTask, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A line for each method that has a run."""
    lines = []
    for method in task.methods:
        found = scores(folder, task, method, seeds)
        if not found:
            continue
        pair = tsarch.load(run_folder(folder, task, method, seeds[0]), device="cpu")
        line: dict[str, Any] = {"method": method.title, "scores": found}
        line["cost"] = cost_of(pair, task, method)
        line["bytes"] = bytes_a_token(pair, task) if method.reads_once else {}
        lines.append(line)
    return lines


def markdown(found: dict[str, list[dict[str, Any]]]) -> str:
    """A table for each task."""
    parts = []
    for task in TASKS:
        lines = found.get(task.name, [])
        if not lines:
            continue
        costs = " | ".join(f"ms, {number} a document" for number in SERVED)
        parts += [f"## {task.name}", "", f"| method | {task.metric} | seeds | {costs} | bytes |"]
        parts.append("|---" * (4 + len(SERVED)) + "|")
        for line in lines:
            own, cost = line["scores"], line["cost"]
            score = f"{statistics.mean(own):.4f}"
            if len(own) > 1:
                score += f" ({min(own):.4f}–{max(own):.4f})"
            each = " | ".join(f"{cost['read'] / n + cost['ask']:.1f}" for n in SERVED)
            size = ", ".join(f"{name} {value:,.0f}" for name, value in line["bytes"].items())
            parts.append(f"| {line['method']} | {score} | {len(own)} | {each} | {size or '–'} |")
        parts.append("")
    return "\n".join(parts)


def main(
    tasks: Annotated[str, typer.Option(help="Tasks, with commas between.")] = "qa,relation,ranking",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between.")] = "0,1,2",
    methods: Annotated[str, typer.Option(help="Methods, with commas; empty: all.")] = "",
    folder: Annotated[Path, typer.Option(help="Folder of the runs.")] = RUNS,
    tables_only: Annotated[bool, typer.Option(help="Do no runs: tables of those done.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of study-queries.json and .md.")] = OUTPUT,
) -> None:
    """Do what is left of the study, print its tables, and write JSON and Markdown."""
    wanted = [own for own in TASKS if own.name in tasks.split(",")]
    chosen = [own.with_methods(methods.split(",")) if methods else own for own in wanted]
    numbers = [int(seed) for seed in seeds.split(",")]
    if not tables_only:
        do_runs(folder, chosen, numbers, train, print)
    torch.set_num_threads(1)
    file = output / "study-queries.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found |= {task.name: own for task in wanted if (own := summary(folder, task, numbers))}
    output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    text = markdown(found)
    (output / "study-queries.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    typer.run(main)
