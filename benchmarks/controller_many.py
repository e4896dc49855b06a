"""What the driver costs with 1,024 and 10,000 ranks: null ranks, many in a process.

As `benchmarks.controller`, whose driver, calls, table and trackers these are, but a process of Ray
answers for many ranks: the driver makes a call for each of them and takes a result from each, as
it does in a run. Only the ranks' start, and the processes that Ray would have, are not simulated.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import ray
import typer
from rich.console import Console

from benchmarks.controller import RESULTS, Driver, Way, measure, null_run
from benchmarks.null_worker import NullWorker
from tsarch.blueprint import Blueprint
from tsarch.cluster.joining import join_ray
from tsarch.cluster.placement import node_supplies
from tsarch.cluster.rank_calls import Calls
from tsarch.cluster.ray_crew import MAX_TICKS, RayCrew, pace_of
from tsarch.cluster.watch import Node, Watch
from tsarch.rank.crew import CrewOfProcesses
from tsarch.telling.terminal import Reporter
from tsarch.telling.trackers import open_trackers

WAYS = (
    Way("one tick a call", 1, steps=4, warm_up_steps=2),
    Way("ticks chosen by the driver", MAX_TICKS, steps=255, warm_up_steps=255),
)


class Hall:
    """The null ranks of one process."""

    def __init__(self, blueprint: Blueprint, ranks: list[int], folder: str) -> None:
        logs = {rank: f"{folder}/rank-{rank}.log" for rank in ranks}
        self._ranks = {rank: NullWorker(blueprint, rank, 1, log) for rank, log in logs.items()}

    def do(self, rank: int, name: str, arguments: tuple[Any, ...]) -> Any:
        """What `Worker.do` is."""
        return self._ranks[rank].do(name, arguments)


@dataclass(frozen=True)
class _Method:
    hall: Any
    rank: int

    def remote(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Call the rank."""
        return self.hall.do.remote(self.rank, name, arguments)


class Seat:
    """Looks to a driver like a rank's actor."""

    def __init__(self, hall: Any, rank: int) -> None:
        self.do = self.do_meanwhile = _Method(hall, rank)


class CrewOfMany(RayCrew):
    """A crew on this machine whose ranks share processes."""

    def __init__(self, blueprint: Blueprint, halls: list[Any], logs: Path) -> None:
        CrewOfProcesses.__init__(self, blueprint, pace_of(blueprint.topology.num_ranks))
        number = blueprint.topology.num_ranks
        self._halls = halls
        self._workers = [Seat(halls[rank % len(halls)], rank) for rank in range(number)]
        self._log_folder = logs
        (here,) = node_supplies()
        node = Node(str(ray.nodes()[0]["NodeID"]), here.name, ray.nodes()[0]["NodeManagerPort"])
        self._watch = Watch(self._workers, [node] * number, blueprint.failure.hang_timeout_s)
        self.calls = Calls(self._workers, self.topology, self._watch, logs)

    def close(self) -> None:
        """End the processes, and Ray."""
        self._watch.stop()
        for hall in self._halls:
            ray.kill(hall, no_restart=True)
        ray.shutdown()


@contextmanager
def crew_of(num_ranks: int, num_processes: int, folder: Path) -> Iterator[Driver]:
    """A driver with so many ranks in so many processes."""
    blueprint = null_run(num_ranks, folder)
    join_ray(num_processes, None, lambda _: None)
    hall = ray.remote(num_cpus=0, max_concurrency=1)(Hall)
    logs = folder / "logs"
    halls = [
        hall.remote(blueprint, list(range(place, num_ranks, num_processes)), str(logs))
        for place in range(num_processes)
    ]
    crew = CrewOfMany(blueprint, halls, logs)
    reporter = Reporter(Console(file=StringIO()))
    try:
        crew.build(blueprint)
        with open_trackers(folder, crew.topology, trace=False) as trackers, reporter.training(0):
            yield Driver(crew, trackers, reporter)
    finally:
        crew.close()


def main(
    ranks: Annotated[list[int], typer.Option(help="Numbers of ranks.")] = [64, 1024, 10_000],  # noqa: B006 - typer reads the default, nobody changes it
    processes: Annotated[int, typer.Option(help="Of null ranks.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Measure, print the table, and write JSON and Markdown."""
    lines = [
        "| ranks | ticks a call | seconds per step | driver CPU per step |",
        "|---|---|---|---|",
    ]
    found = []
    for number in ranks:
        with (
            tempfile.TemporaryDirectory() as folder,
            crew_of(number, processes, Path(folder)) as driver,
        ):
            for way in WAYS:
                cost = measure(driver, way, repeats=1)
                found.append({"way": way.label, **asdict(cost)})
                told = f"{cost.step_s * 1e3:,.1f} ms | {cost.driver_cpu_s * 1e3:,.1f} ms"
                lines.append(f"| {number:,} | {way.label} | {told} |")
                print(lines[-1], flush=True)
    output.mkdir(parents=True, exist_ok=True)
    (output / "controller-many.json").write_text(json.dumps(found, indent=2) + "\n")
    (output / "controller-many.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
