"""How long a command takes until it does what it is for: from `tsarch train` to the first training
step, and the whole of `tsarch evaluate`, each in a process of its own, as a user calls it.

The first call of each kind fills the caches and isn't counted. Seconds of the processors, of all
processes that a call waited for, stand beside those of the clock, which a busy machine spoils.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

RESULTS = Path("benchmarks/results")
_TIMEOUT_S = 900.0
_MAIN = "from tsarch.launch.cli import main; main()"


@dataclass(frozen=True)
class Call:
    """What one call took."""

    wall_s: float
    cpu_s: float
    timings: dict[str, Any] = field(default_factory=dict)
    """Of `summary.json`; empty: the command writes none."""

    @property
    def wanted_s(self) -> float:
        """To the first training step, or to the end."""
        return float(self.timings.get("first_step_start_s", self.wall_s))


def call(arguments: Sequence[str], folder: Path | None = None) -> Call:
    """Run a command of tsarch; `folder`: of the run that it writes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started_s = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", _MAIN, *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=_TIMEOUT_S,
    )
    wall_s = time.perf_counter() - started_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    timings = {} if folder is None else json.loads((folder / "summary.json").read_text())["timings"]
    return Call(wall_s, cpu_s, timings)


def measure(
    config: Path, runners: Sequence[str], turns: int, folder: Path
) -> dict[str, list[Call]]:
    """Calls of each kind, in turns, without the first."""
    calls: dict[str, list[Call]] = {}
    for turn in range(turns + 1):
        for runner in runners:
            run = folder / f"{runner}-{turn}"
            changes = [f"topology.runner={runner}", "schedule.max_steps=2", f"run.folder={run}"]
            sets = [part for change in changes for part in ("--set", change)]
            trained = call(["train", str(config), *sets], run)
            calls.setdefault(f"train, {runner}: to the first step", []).append(trained)
        evaluated = call(["evaluate", str(run)])
        calls.setdefault("evaluate", []).append(evaluated)
    return {kind: own[1:] for kind, own in calls.items()}


def markdown(calls: dict[str, list[Call]]) -> str:
    """A row a kind, and below what the seconds of training's start went into."""
    lines = [
        "| command | s (median) | least | most | CPU s of the whole call |",
        "|---|---|---|---|---|",
    ]
    for kind, own in calls.items():
        seconds = [each.wanted_s for each in own]
        cpu_s = median(each.cpu_s for each in own)
        figures = f"{median(seconds):.1f} | {min(seconds):.1f} | {max(seconds):.1f} | {cpu_s:.1f}"
        lines.append(f"| {kind} | {figures} |")
    for kind, own in calls.items():
        if own[0].timings:
            lines += ["", f"{kind}, by phase of the whole call, s (median):", ""]
            for phase in own[0].timings["phases_s"]:
                seconds = [each.timings["phases_s"][phase] for each in own]
                lines.append(f"- {phase}: {median(seconds):.2f}")
    return "\n".join(lines) + "\n"


def main(
    config: Annotated[Path, typer.Option(help="The run.")] = Path("configs/quickstart.yaml"),
    runners: Annotated[list[str], typer.Option(help="`topology.runner`.")] = ["ray", "processes"],  # noqa: B006 - typer reads the default, nobody changes it
    turns: Annotated[int, typer.Option(min=1, help="Counted calls of each kind.")] = 5,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Measure, print the table, and write JSON and Markdown."""
    with tempfile.TemporaryDirectory(prefix="tsarch-") as folder:
        calls = measure(config, runners, turns, Path(folder))
    text = json.dumps(
        {kind: [asdict(each) for each in own] for kind, own in calls.items()}, indent=2
    )
    output.mkdir(parents=True, exist_ok=True)
    (output / "start.json").write_text(text + "\n")
    (output / "start.md").write_text(markdown(calls))
    print(markdown(calls))


if __name__ == "__main__":
    typer.run(main)
