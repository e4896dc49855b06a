"""Speed of tsarch and of its peers on one job, all sides in one run, turn by turn.

The job is `configs/bench.yaml`: the same data, models, precision, and two threads in all. Every
side is a process of its own (`benchmarks/ours.py`, `peer_*.py`, `article_loop.py`) that ends before
the next one starts; a side that fails has its error in the table.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.bench_job import CONFIG
from benchmarks.processes import SideError, run_module
from benchmarks.side_table import markdown
from benchmarks.sides import SideFailure, SideRun, read_runs, summarise
from tsarch.config import Config
from tsarch.config_loading import load_config

RESULTS = Path("benchmarks/results")
TIMEOUT_S = 600.0
Turn = dict[str, SideRun | SideFailure]


@dataclass(frozen=True)
class Script:
    """A file of benchmarks/ that times some sides."""

    module: str
    sides: tuple[str, ...]
    on_ranks: bool = False


SCRIPTS = (
    Script("benchmarks.ours", ("overlapped", "joint", "sequential", "local")),
    Script("benchmarks.peer_pipeline", ("pipeline",), on_ranks=True),
    Script("benchmarks.peer_accelerate", ("accelerate",), on_ranks=True),
    Script("benchmarks.peer_trainer", ("trainer",)),
)


def time_script(script: Script, config: Path, steps: int, warm_up: int, folder: Path) -> Turn:
    """One turn of a script's sides."""
    output = folder / "runs.json"
    output.unlink(missing_ok=True)
    arguments = ["--config", str(config), "--steps", str(steps), "--warm-up", str(warm_up)]
    arguments += ["--output", str(output)]
    try:
        run_module(script.module, arguments, folder / "log", TIMEOUT_S, script.on_ranks)
    except SideError as error:
        return {side: SideFailure(side, str(error)) for side in script.sides}
    found: Turn = {run.side: run for run in read_runs(output)}
    return {side: found[side] for side in script.sides}


def time_article_loop(config: Config, steps: int, warm_up: int, folder: Path) -> Turn:
    """One turn of the article's loop, in its own layout: 16 sentences of 128 tokens."""
    output = folder / "article.json"
    assert config.teacher is not None
    assert config.student is not None
    layers = ",".join(map(str, config.student.layers or []))
    arguments = ["--student-layers", layers, "--threads", "2", "--steps", str(steps)]
    arguments += ["--attention-dropout", str(config.teacher.attention_dropout)]
    arguments += ["--teacher", str(config.teacher.model), "--data", str(_data_folder(config))]
    arguments += ["--warm-up", str(warm_up), "--output", str(output)]
    try:
        run_module("benchmarks.article_loop", arguments, folder / "log", TIMEOUT_S)
    except SideError as error:
        return {"article": SideFailure("article", str(error))}
    return {"article": article_run(json.loads(output.read_text(encoding="utf-8")))}


def _data_folder(config: Config) -> Path:
    assert isinstance(config.data.train, str)
    return Path(config.data.train).parent


def article_run(result: Mapping[str, float]) -> SideRun:
    """The article's loop as a side; both models compute all its positions."""
    positions = int(result["num_padded_tokens"])
    wall_s = float(result["train_s"])
    return SideRun(
        "article",
        int(result["num_steps"]),
        int(result["num_tokens"]),
        positions,
        positions,
        wall_s,
        int(result["num_threads"]) * wall_s,
    )


def measure(config_file: Path, repeats: int, steps: int, warm_up: int) -> list[Turn]:
    """All sides, turn by turn, so that the machine's moods meet all of them."""
    console = Console(stderr=True, highlight=False)
    turns = []
    with tempfile.TemporaryDirectory() as name:
        for repeat in range(repeats):
            turn: Turn = {}
            for script in SCRIPTS:
                turn |= time_script(script, config_file, steps, warm_up, Path(name))
            turn |= time_article_loop(load_config(config_file), steps, warm_up, Path(name))
            turns.append(turn)
            console.print(f"{repeat + 1}/{repeats}: {_one_line(turn)} tokens/s")
    return turns


def _one_line(turn: Turn) -> str:
    values = (
        (side, f"{run.tokens_per_s:.0f}" if isinstance(run, SideRun) else "failed")
        for side, run in turn.items()
    )
    return ", ".join(f"{side} {value}" for side, value in values)


def failures(turns: Sequence[Turn]) -> list[SideFailure]:
    """Sides that failed, in any turn."""
    return [run for turn in turns for run in turn.values() if isinstance(run, SideFailure)]


def main(
    config: Annotated[Path, typer.Option(help="Config of the job.")] = CONFIG,
    repeats: Annotated[int, typer.Option(help="Repeats of every side.")] = 3,
    steps: Annotated[int, typer.Option(help="Timed steps of a side.")] = 5,
    warm_up: Annotated[int, typer.Option(help="Steps before them.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder of pipeline.json and .md.")] = RESULTS,
) -> None:
    """Measure, print the table, and write JSON and Markdown; exit status 1 if a side failed."""
    turns = measure(config, repeats, steps, warm_up)
    summary = summarise(turns, "overlapped")
    table = markdown(summary, repeats, steps)
    output.mkdir(parents=True, exist_ok=True)
    (output / "pipeline.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    (output / "pipeline.md").write_text(table, encoding="utf-8")
    print(table)
    for failure in failures(turns):
        print(failure.error)
    if failures(turns):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
