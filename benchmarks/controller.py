"""What the driver costs: null stages of 2 … 64 ranks, driven as a run drives its ranks.

The ranks compute nothing and answer with complete reports; everything on the driver's side is a
run's own code: Ray calls, the table of steps, `metrics.jsonl`, the curves and the live line. Two
ways: one tick a call, as in a run whose steps take half a second or more, and as many ticks a
call as the driver chooses by itself for short steps. Seconds per step are those of this whole
machine, where all ranks share the driver's cores; on a cluster they are on others.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks.null_worker import NullWorker
from tsarch.blueprint import Blueprint, resolve
from tsarch.clock import now_s
from tsarch.cluster.ray_crew import MAX_TICKS, RayCrew
from tsarch.config_loading import parse_config
from tsarch.rank.crew import Reports, drive
from tsarch.rank.pacer import Pacer, Situation
from tsarch.telling.step_table import StepTable
from tsarch.telling.terminal import LiveNumbers, Reporter
from tsarch.telling.tracker import TrackedRun
from tsarch.telling.trackers import Trackers, open_trackers
from tsarch.topology import STAGES

RESULTS = Path("benchmarks/results")
RANKS = (2, 8, 16, 32, 64)
FITTED_TO = 1024
LIMIT_S = 0.010
"""Seconds per step that 64 ranks may cost."""
QUANTITIES = {"step_s": "seconds per step", "driver_cpu_s": "driver CPU per step"}


@dataclass(frozen=True)
class Way:
    """How many ticks ranks run per call, and how many steps are measured."""

    label: str
    max_chunk_ticks: int
    steps: int
    warm_up_steps: int


WAYS = {
    "one": Way("one tick a call", 1, steps=40, warm_up_steps=10),
    "chosen": Way("ticks chosen by the driver", MAX_TICKS, steps=1023, warm_up_steps=1023),
}


@dataclass(frozen=True)
class Cost:
    """Medians over the repeats for one number of ranks, all per step."""

    ranks: int
    step_s: float
    driver_cpu_s: float
    """CPU time of the driver's process, all its threads; the ranks' and Ray's own left out."""


@dataclass(frozen=True)
class Line:
    """cost = fixed_s + per_rank_s × ranks, by least squares."""

    fixed_s: float
    per_rank_s: float
    residual_s: float
    """Root mean square of what the line misses."""
    largest_relative_residual: float

    def at(self, ranks: int) -> float:
        """Seconds at a number of ranks."""
        return self.fixed_s + self.per_rank_s * ranks


def fit_line(ranks: Sequence[int], seconds: Sequence[float]) -> Line:
    """Least squares over at least two numbers of ranks."""
    x, y = np.array(ranks, dtype=float), np.array(seconds)
    per_rank_s, fixed_s = np.polyfit(x, y, 1)
    missed = y - (fixed_s + per_rank_s * x)
    return Line(
        float(fixed_s),
        float(per_rank_s),
        float(np.sqrt((missed**2).mean())),
        float((np.abs(missed) / y).max()),
    )


def null_run(num_ranks: int, folder: Path) -> Blueprint:
    """Half of the ranks are teachers, all share this machine's cores."""
    teachers = num_ranks // 2
    config = parse_config(
        {
            "run": {"name": "controller", "folder": str(folder)},
            "data": {"train": "-", "validation": "-", "test": "-"},
            "teacher": {"config": {"model_type": "bert"}},
            "student": {"layers": [0]},
            "topology": {
                "device": "cpu",
                "cpus_per_rank": 0.5,
                "teacher": {"replicas": teachers},
                "student": {"replicas": num_ranks - teachers},
            },
        },
        "controller",
    )
    return resolve(config)


class Driver:
    """A run's loop over the steps (see `Trainer`) without its evaluations."""

    def __init__(self, crew: RayCrew, trackers: Trackers, reporter: Reporter) -> None:
        self.crew = crew
        self._trackers = trackers
        self._reporter = reporter
        self._pacer = Pacer(crew.pace)
        self._table = StepTable(crew.topology)

    def train(self, num_steps: int) -> None:
        """Train the next steps and write a row of each."""
        start = self._table.totals.steps
        stop = start + num_steps
        self._table.start_span(now_s())
        totals, topology = self._table.totals, self.crew.topology
        self._pacer.begin(0, start, stop, self.crew.begin(start, stop))
        for event in drive(self.crew, self._pacer, Situation, lambda cut: False):
            reports = event.reports if isinstance(event, Reports) else []
            self._trackers.ticks(reports, 0)
            for row in self._table.add(reports, 0):
                self._trackers.step(row)
                shares = {s.value: totals.busy_share(s, topology) for s in STAGES}
                numbers = LiveNumbers(row, totals.tokens_per_s, shares)
                self._reporter.step(numbers, totals.steps, stop)
        assert totals.steps == stop, "every step has a row"


@contextmanager
def null_crew(num_ranks: int, folder: Path) -> Iterator[Driver]:
    """A driver with null ranks on a Ray of their own."""
    blueprint = null_run(num_ranks, folder)
    crew = RayCrew.start(blueprint, None, folder / "logs", lambda _: None, NullWorker)
    with driving(crew, folder) as driver:
        yield driver


@contextmanager
def driving(crew: RayCrew, folder: Path) -> Iterator[Driver]:
    """What a run has beside its ranks, within; then the ranks end."""
    reporter = Reporter(Console(file=StringIO()))
    try:
        tracked = TrackedRun.of(folder, crew.blueprint)
        with open_trackers(tracked, reporter.say) as trackers, reporter.training(0):
            yield Driver(crew, trackers, reporter)
    finally:
        crew.close()


def measure(driver: Driver, way: Way, repeats: int) -> Cost:
    """Medians over spans of steps, after a span that does not count."""
    driver.crew.pace.max_ticks = way.max_chunk_ticks
    driver.train(way.warm_up_steps)
    wall_s, cpu_s = [], []
    for _ in range(repeats):
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        driver.train(way.steps)
        wall_s.append((time.perf_counter() - began_s) / way.steps)
        cpu_s.append((time.process_time() - began_cpu_s) / way.steps)
    ranks = driver.crew.topology.num_ranks
    return Cost(ranks, statistics.median(wall_s), statistics.median(cpu_s))


def measure_all(ranks: Sequence[int], repeats: int) -> dict[str, list[Cost]]:
    """Every way at every number of ranks, in one run."""
    costs: dict[str, list[Cost]] = {name: [] for name in WAYS}
    console = Console(stderr=True, highlight=False)
    for num_ranks in ranks:
        with tempfile.TemporaryDirectory() as folder, null_crew(num_ranks, Path(folder)) as driver:
            for name, way in WAYS.items():
                cost = measure(driver, way, repeats)
                costs[name].append(cost)
                console.print(
                    f"{num_ranks} ranks, {way.label}: {cost.step_s * 1e3:.2f} ms a step, "
                    f"{cost.driver_cpu_s * 1e3:.2f} ms CPU of the driver"
                )
    return costs


def summarise(costs: dict[str, list[Cost]]) -> dict[str, Any]:
    """The costs, the line through them, and where it is at `FITTED_TO` ranks."""
    ways: dict[str, Any] = {}
    for name, own in costs.items():
        ranks = [cost.ranks for cost in own]
        lines = {q: fit_line(ranks, [getattr(cost, q) for cost in own]) for q in QUANTITIES}
        ways[name] = {
            "max_chunk_ticks": WAYS[name].max_chunk_ticks,
            "measured": [asdict(cost) for cost in own],
            "fit": {q: asdict(line) for q, line in lines.items()},
            f"at_{FITTED_TO}_ranks": {q: line.at(FITTED_TO) for q, line in lines.items()},
        }
    largest = costs["chosen"][-1]
    return {
        "limit_step_s": LIMIT_S,
        "within_limit": largest.step_s < LIMIT_S,
        "load_average": os.getloadavg(),
        "cores": len(os.sched_getaffinity(0)),
        "ways": ways,
    }


def markdown(result: dict[str, Any]) -> str:
    """A row per number of ranks, one of the fit at `FITTED_TO`, and the lines in words."""
    ways = result["ways"]
    titles = [f"{QUANTITIES[q]}, {WAYS[w].label}" for w in ways for q in QUANTITIES]
    lines = [f"| ranks | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for rows in zip(*(way["measured"] for way in ways.values()), strict=True):
        cells = [f"{row[q] * 1e3:.2f} ms" for row in rows for q in QUANTITIES]
        lines.append(f"| {rows[0]['ranks']} | {' | '.join(cells)} |")
    cells = [
        f"{w[f'at_{FITTED_TO}_ranks'][q] * 1e3:.1f} ms" for w in ways.values() for q in QUANTITIES
    ]
    lines += [f"| {FITTED_TO:,} (fit, not measured) | {' | '.join(cells)} |", ""]
    for name, way in ways.items():
        for quantity, fit in way["fit"].items():
            lines.append(
                f"- {QUANTITIES[quantity]}, {WAYS[name].label}: {fit['fixed_s'] * 1e3:.2f} ms + "
                f"{fit['per_rank_s'] * 1e6:.0f} µs · ranks; residual (root mean square) "
                f"{fit['residual_s'] * 1e3:.2f} ms, at most "
                f"{fit['largest_relative_residual']:.0%} of a measured value"
            )
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Measured points and the fitted lines, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, len(QUANTITIES), sharey=True)
    for axis, (quantity, title) in zip(axes, QUANTITIES.items(), strict=True):
        for name, way in result["ways"].items():
            ranks = [row["ranks"] for row in way["measured"]]
            points = [row[quantity] * 1e3 for row in way["measured"]]
            fit = Line(**way["fit"][quantity])
            beyond = np.geomspace(min(ranks), FITTED_TO, 50)
            (drawn,) = axis.plot(ranks, points, "o", label=WAYS[name].label)
            fitted_ms = [fit.at(r) * 1e3 for r in beyond]
            axis.plot(beyond, fitted_ms, "--", color=drawn.get_color(), linewidth=1)
        axis.axhline(LIMIT_S * 1e3, color="grey", linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlabel="ranks (dashed: fit)", title=title)
        axis.set_xticks([2, 8, 32, 64, 256, 1024], labels=["2", "8", "32", "64", "256", "1024"])
        axis.minorticks_off()
    axes[0].set_ylabel("ms")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main(
    ranks: Annotated[
        list[int], typer.Option(help="Numbers of ranks, rising, two at least.")
    ] = list(RANKS),  # noqa: B006 - typer reads the default, nobody changes it
    repeats: Annotated[int, typer.Option(help="Spans whose median counts.")] = 5,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Measure, print the table, and write JSON, Markdown and a plot."""
    result = summarise(measure_all(ranks, repeats))
    output.mkdir(parents=True, exist_ok=True)
    (output / "controller.json").write_text(json.dumps(result, indent=2) + "\n")
    (output / "controller.md").write_text(markdown(result))
    plot(result, output / "controller.png")
    print(markdown(result))


if __name__ == "__main__":
    typer.run(main)
