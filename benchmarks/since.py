"""How much faster training has become since a commit: a config then and now, turn by turn.

Both sides are the whole `tsarch train` of a few dozen steps, each from its own checkout with this
environment's Python; what counts is `tokens_per_s` of their `summary.json`.

    python -m benchmarks.since 09f39d1
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 900.0
_COMMAND_LINE = """
import importlib
try:
    cli = importlib.import_module("tsarch.launch.cli")
except ModuleNotFoundError:  # as it was called until the project was packaged
    cli = importlib.import_module("launch.cli")
cli.main()
"""


@dataclass(frozen=True)
class Side:
    """A checkout, and a precision."""

    name: str
    folder: Path
    precision: str


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The project as of a commit, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="tsarch-since-") as name:
        folder = Path(name) / "then"
        subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(folder), commit],
            check=True,
            capture_output=True,
        )
        try:
            yield folder
        finally:
            subprocess.run(
                ["git", "-C", str(ROOT), "worktree", "remove", "--force", str(folder)], check=True
            )


def train(side: Side, config: str, overrides: Sequence[str], steps: int, runs: Path) -> float:
    """Real tokens a second of a run of `steps` steps.

    Raises:
        RuntimeError: the run failed; the message has the end of its output.
    """
    run = Path(tempfile.mkdtemp(dir=runs))
    changes = [f"run.folder={run / 'run'}", f"schedule.max_steps={steps}"]
    changes += ["evaluation.before=false", f"precision={side.precision}", *overrides]
    command = [sys.executable, "-c", _COMMAND_LINE, "train", config]
    for change in changes:
        command += ["--set", change]
    done = subprocess.run(
        command,
        cwd=side.folder,
        env={**os.environ, "PYTHONPATH": str(side.folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{side.name}: exit status {done.returncode}\n{done.stdout[-2000:]}")
    summary = json.loads((run / "run" / "summary.json").read_text(encoding="utf-8"))
    return float(summary["tokens_per_s"])


def table(found: Mapping[str, Sequence[float]], reference: str) -> str:
    """Median tokens/s of each side, and the median of its ratio to `reference` turn by turn."""
    lines = ["| side | tokens/s | × then (least–most) |", "|---|---|---|"]
    for name, speeds in found.items():
        ratios = [own / then for own, then in zip(speeds, found[reference], strict=True)]
        lines.append(
            f"| {name} | {statistics.median(speeds):,.0f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}–{max(ratios):.2f}) |"
        )
    return "\n".join(lines)


def main(
    commit: Annotated[str, typer.Argument(help="What to compare with.")],
    config: Annotated[str, typer.Option(help="Config, in both.")] = "configs/quickstart.yaml",
    repeats: Annotated[int, typer.Option(help="Runs of each side.")] = 5,
    steps: Annotated[int, typer.Option(help="Steps of a run.")] = 40,
    overrides: Annotated[list[str], typer.Option("--set", help="Change a key, on all sides.")] = [],  # noqa: B006 - typer reads the default, nobody changes it
) -> None:
    """Train then and now, in turns, and print the table."""
    with checkout(commit) as then, tempfile.TemporaryDirectory() as runs:
        sides = [Side(f"then ({commit}), fp32", then, "fp32")]
        sides += [Side(f"now, {precision}", ROOT, precision) for precision in ("fp32", "bf16")]
        found: dict[str, list[float]] = {side.name: [] for side in sides}
        for _ in range(repeats):
            for side in sides:
                found[side.name].append(train(side, config, overrides, steps, Path(runs)))
            print({name: round(speeds[-1]) for name, speeds in found.items()}, file=sys.stderr)
    print(table(found, sides[0].name))


if __name__ == "__main__":
    typer.run(main)
