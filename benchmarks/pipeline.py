"""Speed of tsarch and of its peers on one job, all sides in one run, turn by turn.

The job is `configs/bench.yaml`, in fp32 and in bf16: the same data and models, and two threads in
all. Every side is a process of its own (`benchmarks/ours.py`, `peer_*.py`, `article_loop.py`) that
ends before the next one starts; a side that fails has its error in the table.
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
from benchmarks.matrix_peak import flops_per_token, peak_flops
from benchmarks.processes import SideError, run_module
from benchmarks.side_table import markdown
from benchmarks.sides import SideFailure, SideRun, read_runs, summarise
from tsarch.blueprint import resolve
from tsarch.config import Config
from tsarch.config_loading import load_config

RESULTS = Path("benchmarks/results")
TIMEOUT_S = 600.0
PRECISIONS = ("fp32", "bf16")
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


def time_script(
    script: Script, config: Path, precision: str, steps: int, warm_up: int, folder: Path
) -> Turn:
    """One turn of a script's sides."""
    output = folder / "runs.json"
    output.unlink(missing_ok=True)
    arguments = ["--config", str(config), "--steps", str(steps), "--warm-up", str(warm_up)]
    arguments += ["--output", str(output), "--precision", precision]
    try:
        run_module(script.module, arguments, folder / "log", TIMEOUT_S, script.on_ranks)
    except SideError as error:
        return {side: SideFailure(side, str(error)) for side in script.sides}
    found: Turn = {run.side: run for run in read_runs(output)}
    return {side: found[side] for side in script.sides}


def time_article_loop(
    config: Config, precision: str, steps: int, warm_up: int, folder: Path
) -> Turn:
    """One turn of the article's loop, in its own layout: 16 sentences of 128 tokens."""
    output = folder / "article.json"
    assert config.teacher is not None
    assert config.student is not None
    layers = ",".join(map(str, config.student.layers or []))
    arguments = ["--student-layers", layers, "--threads", "2", "--steps", str(steps)]
    arguments += ["--attention-dropout", str(config.teacher.attention_dropout)]
    arguments += ["--teacher", str(config.teacher.model), "--data", str(_data_folder(config))]
    arguments += ["--warm-up", str(warm_up), "--output", str(output)]
    arguments += ["--bf16"] if precision == "bf16" else []
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


@dataclass(frozen=True)
class Measured:
    """All turns in one precision."""

    turns: list[Turn]
    peaks: list[float]
    """Operations a second of plain matrix products, measured before each turn."""


def measure(
    config_file: Path, precisions: Sequence[str], repeats: int, steps: int, warm_up: int
) -> dict[str, Measured]:
    """All sides, turn by turn, so that the machine's moods meet all of them."""
    console = Console(stderr=True, highlight=False)
    found = {precision: Measured([], []) for precision in precisions}
    with tempfile.TemporaryDirectory() as name:
        folder, config = Path(name), load_config(config_file)
        for repeat in range(repeats):
            for precision, own in found.items():
                own.peaks.append(peak_flops(precision))
                turn: Turn = {}
                for script in SCRIPTS:
                    turn |= time_script(script, config_file, precision, steps, warm_up, folder)
                turn |= time_article_loop(config, precision, steps, warm_up, folder)
                own.turns.append(turn)
                line = f"{repeat + 1}/{repeats} {precision}: {_one_line(turn)} tokens/s"
                console.print(f"{line}; peak {own.peaks[-1] / 1e9:.0f} GFLOP/s")
    return found


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
    repeats: Annotated[int, typer.Option(help="Repeats of every side.")] = 5,
    steps: Annotated[int, typer.Option(help="Timed steps of a side.")] = 5,
    warm_up: Annotated[int, typer.Option(help="Steps before them.")] = 2,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, bf16; given once or twice. Default: both.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of pipeline.json and .md.")] = RESULTS,
) -> None:
    """Measure, print the tables, and write JSON and Markdown; exit status 1 if a side failed."""
    found = measure(config, precision or PRECISIONS, repeats, steps, warm_up)
    flops = flops_per_token(resolve(load_config(config)))
    result, tables = {}, []
    for name, own in found.items():
        summary = summarise(own.turns, "overlapped", [flops / peak for peak in own.peaks])
        result[name] = {"sides": summary, "peak_flops": own.peaks, "flops_per_token": flops}
        tables.append(markdown(summary, repeats, steps, name, own.peaks, flops))
    output.mkdir(parents=True, exist_ok=True)
    (output / "pipeline.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (output / "pipeline.md").write_text("\n".join(tables), encoding="utf-8")
    print("\n".join(tables))
    failed = [failure for own in found.values() for failure in failures(own.turns)]
    for failure in failed:
        print(failure.error)
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
