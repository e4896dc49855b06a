"""`make seeds`: every task's config with three seeds, before and after training, with the spread.

    python -m benchmarks.seeds [--only CONFIG]…   results: benchmarks/results/seeds.{json,md}

Each run is a process of one thread, two at a time; finished ones are in runs/seeds and aren't done
again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from benchmarks.processes import SideError, run_module
from tsarch.config import MODES

CONFIGS = (
    "quickstart",
    "classification",
    "relation",
    "ranking",
    "qa",
    "translation",
    "summarization",
    "dialogue",
)
SEEDS = (0, 1, 2)
RUNS = Path("runs/seeds")
OUTPUT = Path("benchmarks/results/seeds.json")
TIMEOUT_S = 7200.0
"""For one run."""


@dataclass(frozen=True)
class Gain:
    """A metric of a mode on the test split, before and after, of the seeds that have run."""

    config: str
    mode: str
    metric: str
    before: list[float]
    after: list[float]
    lower_is_better: bool

    @property
    def is_beyond_spread(self) -> bool:
        """Whether the worst seed after training is better than the best one before."""
        if self.lower_is_better:
            return max(self.after) < min(self.before)
        return min(self.after) > max(self.before)


def train(config: str, seed: int) -> str | None:
    """Train a config with a seed, unless that was done. The output is in a file beside the run's
    folder.

    Returns:
        What went wrong; None if the run is done.
    """
    folder = RUNS / f"{config}-seed{seed}"
    if (folder / "summary.json").exists():
        return None
    settings = [f"run.seed={seed}", f"run.folder={folder}", "topology.runner=local"]
    settings += ["topology.threads=1"]
    arguments = [f"configs/{config}.yaml"]
    arguments += ["--resume"] * bool(list(folder.glob("checkpoints/step-*")))
    arguments += [word for setting in settings for word in ("--set", setting)]
    RUNS.mkdir(parents=True, exist_ok=True)
    try:
        run_module(
            "tsarch.launch.train", arguments, folder.with_suffix(".log"), TIMEOUT_S, threads=1
        )
    except SideError as error:
        return f"{folder} failed: {error}"
    return None


def gains(config: str, summaries: Sequence[dict[str, Any]]) -> list[Gain]:
    """Every metric of every mode."""
    found = []
    for mode in MODES:
        for metric in summaries[0]["after"][mode]:
            before, after = (
                [float(summary[when][mode][metric]) for summary in summaries]
                for when in ("before", "after")
            )
            lower = metric == "perplexity"
            found.append(Gain(config, mode, metric, before, after, lower))
    return found


def summaries(config: str) -> list[dict[str, Any]]:
    """Of the seeds that have run."""
    files = (RUNS / f"{config}-seed{seed}" / "summary.json" for seed in SEEDS)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


def earlier_gains() -> list[Gain]:
    """The table that is there now."""
    raw = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.exists() else []
    fields = Gain.__dataclass_fields__
    return [Gain(**{name: row[name] for name in fields}) for row in raw]


def own_gains(config: str, earlier: Sequence[Gain]) -> list[Gain]:
    """Of the runs of a config; without any, what the table has of it already."""
    own = summaries(config)
    return gains(config, own) if own else [gain for gain in earlier if gain.config == config]


def markdown(rows: Sequence[Gain]) -> str:
    """The table: a row for each metric of a config, a column for each mode."""
    lines = [
        "Test split, one process, one thread: mean before → after training (least–most after). "
        "With an asterisk it is not beyond the spread: the worst seed after training is not better "
        "than the best one before.",
        "",
        "| config | metric | seeds | " + " | ".join(f"`{mode}`" for mode in MODES) + " |",
        "|---" * (3 + len(MODES)) + "|",
    ]
    metrics = dict.fromkeys((row.config, row.metric) for row in rows)
    for config, metric in metrics:
        own = {row.mode: row for row in rows if (row.config, row.metric) == (config, metric)}
        seeds = max(len(row.after) for row in own.values())
        cells = [_cell(own[mode]) if mode in own else "–" for mode in MODES]
        lines.append("| " + " | ".join([config, metric, str(seeds), *cells]) + " |")
    return "\n".join([*lines, ""])


def _cell(row: Gain) -> str:
    is_share = row.metric not in ("perplexity", "bleu", "chrf")
    values = (fmean(row.before), fmean(row.after), min(row.after), max(row.after))
    before, after, least, most = (_number(value, is_share) for value in values)
    if len(row.after) == 1:  # one seed has no spread
        return f"{before} → {after}"
    return f"{before} → {after} ({least}–{most}){'' if row.is_beyond_spread else '*'}"


def _number(value: float, is_share: bool) -> str:
    if is_share:
        return f"{value:.4f}"
    return f"{value:.2f}" if value < 1000 else f"{value:.4g}"


def main(
    only: Annotated[list[str] | None, typer.Option(help="Name of a config. Default: all.")] = None,
    table: Annotated[bool, typer.Option("--table", help="Train nothing more.")] = False,
    processes: Annotated[int, typer.Option(help="Runs at a time, a thread each.")] = 2,
) -> None:
    """Train and write the table."""
    earlier = earlier_gains()
    configs = [config for config in CONFIGS if not table and (only is None or config in only)]
    with ThreadPoolExecutor(processes) as pool:
        runs = [(config, seed) for seed in SEEDS for config in configs]
        any_failed = False
        for (config, seed), what in zip(runs, pool.map(lambda run: train(*run), runs)):
            print(what or f"{config}, seed {seed}: done", flush=True)
            any_failed |= what is not None
    rows = [gain for config in CONFIGS for gain in own_gains(config, earlier)]
    content = [{**asdict(row), "is_beyond_spread": row.is_beyond_spread} for row in rows]
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    OUTPUT.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))
    if any_failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
