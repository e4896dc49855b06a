"""`make seeds`: every task's config with three seeds, before and after training, with the spread.

    python -m benchmarks.seeds [--only CONFIG]…   results: benchmarks/results/seeds.{json,md}

Each run is one process of one thread; finished ones are in runs/seeds and aren't done again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

CONFIGS = (
    "quickstart",
    "classification",
    "relation",
    "qa",
    "translation",
    "summarization",
    "dialogue",
)
SEEDS = (0, 1, 2)
MODES = ("teacher", "student")
RUNS = Path("runs/seeds")
OUTPUT = Path("benchmarks/results/seeds.json")


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


def train(config: str, seed: int) -> None:
    """Train a config with a seed, unless that was done."""
    folder = RUNS / f"{config}-seed{seed}"
    if (folder / "summary.json").exists():
        return
    settings = [f"run.seed={seed}", f"run.folder={folder}", "topology.runner=local"]
    settings += ["topology.threads=1"]
    command = [str(Path(sys.executable).with_name("tsarch")), "train", f"configs/{config}.yaml"]
    command += ["--resume"] * bool(list(folder.glob("checkpoints/step-*")))
    subprocess.run(command + [w for s in settings for w in ("--set", s)], check=True)


def gains(config: str, summaries: Sequence[dict[str, Any]]) -> list[Gain]:
    """Every metric of teacher and student."""
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


def markdown(rows: Sequence[Gain]) -> str:
    """The table."""
    lines = [
        "Test split, mean (least–most) of seeds; one process, one thread.",
        "",
        "| config | mode | metric | seeds | before | after | beyond the spread |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        beyond = "yes" if row.is_beyond_spread else "NO"
        cells = [row.config, row.mode, row.metric, str(len(row.after))]
        lines.append(
            "| " + " | ".join([*cells, _spread(row.before), _spread(row.after), beyond]) + " |"
        )
    return "\n".join([*lines, ""])


def _spread(values: Sequence[float]) -> str:
    form = ".4g" if max(values) > 1 else ".4f"
    mean, least, most = (format(v, form) for v in (fmean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({least}–{most})"


def main(
    only: Annotated[list[str] | None, typer.Option(help="Name of a config. Default: all.")] = None,
    table: Annotated[bool, typer.Option("--table", help="Train nothing more.")] = False,
) -> None:
    """Train and write the table."""
    for seed in SEEDS:
        for config in CONFIGS if not table else ():
            if only is None or config in only:
                train(config, seed)
    rows = [gain for config in CONFIGS if (own := summaries(config)) for gain in gains(config, own)]
    content = [{**asdict(row), "is_beyond_spread": row.is_beyond_spread} for row in rows]
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    OUTPUT.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    typer.run(main)
