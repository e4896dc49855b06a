"""What the driver costs at 1,024 and 10,000 ranks: null ranks, a thousand or more a process.

The driver's side is a run's own, as in `controller.py`: a Ray call, a status and a report for every
rank. Only on the other side many ranks share an actor, which a machine of two cores has room for.
So what thousands of connections cost is not in it. All ranks compute on the driver's cores: CPU
time of the driver's process is told beside the seconds of a step.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import ray
import typer

from benchmarks.controller import RESULTS, Cost, Driver, Way, driving, measure, null_run
from benchmarks.null_worker import NullWorker
from tsarch.blueprint import Blueprint
from tsarch.cluster.joining import join_ray
from tsarch.cluster.own_ray import hush_ray
from tsarch.cluster.ray_crew import RayCrew
from tsarch.cluster.ray_members import RayMembers
from tsarch.cluster.watch import Node
from tsarch.cluster.worker import WATCH, Actor

RANKS = (64, 1024, 10_000)
RANKS_A_PROCESS = 1250
WAYS = (
    Way("one tick a call", 1, steps=4, warm_up_steps=2),
    Way("16 ticks a call", 16, steps=31, warm_up_steps=15),
)
"""A tick more than there are steps, since the student is one behind: so all calls are full."""


class NullRanks:
    """An actor that is many ranks."""

    def __init__(self, blueprint: Blueprint, ranks: Sequence[int], log_file: str) -> None:
        self._ranks: dict[int, Actor] = {
            rank: NullWorker(blueprint, rank, 1, log_file) for rank in ranks
        }

    def do(self, rank: int, name: str, arguments: tuple[Any, ...]) -> Any:
        """See `Actor.do`."""
        return self._ranks[rank].do(name, arguments)

    @ray.method(concurrency_group=WATCH)  # type: ignore[untyped-decorator]
    def do_meanwhile(self, rank: int, name: str, arguments: tuple[Any, ...]) -> Any:
        """See `Actor.do_meanwhile`."""
        return self._ranks[rank].do(name, arguments)


@dataclass(frozen=True)
class _Method:
    """A method of one rank's, called as Ray's are."""

    method: Any
    rank: int

    def remote(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """A reference to the result."""
        return self.method.remote(self.rank, name, arguments)


class _Rank:
    """In place of the handle of a rank's own actor."""

    def __init__(self, actor: Any, rank: int) -> None:
        self.do = _Method(actor.do, rank)
        self.do_meanwhile = _Method(actor.do_meanwhile, rank)


class SharedMembers(RayMembers):
    """Ranks that share actors on this machine; none of them can be replaced."""

    def __init__(self, blueprint: Blueprint, log_file: Path) -> None:
        num_ranks = blueprint.topology.num_ranks
        (own,) = ray.nodes()
        node = Node(own["NodeID"], own["NodeManagerAddress"], int(own["NodeManagerPort"]))
        self.nodes = [node] * num_ranks
        make = ray.remote(concurrency_groups={WATCH: 1})(NullRanks).options(num_cpus=0).remote
        self._actors, self.workers = [], []
        for start in range(0, num_ranks, RANKS_A_PROCESS):
            ranks = range(start, min(start + RANKS_A_PROCESS, num_ranks))
            actor = make(blueprint, ranks, str(log_file))
            self._actors.append(actor)
            self.workers += [_Rank(actor, rank) for rank in ranks]

    def start_spares(self, wait: bool = False) -> None:
        """There are none."""

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)


@contextmanager
def shared_crew(num_ranks: int, folder: Path) -> Iterator[Driver]:
    """A driver with null ranks that share processes."""
    blueprint = null_run(num_ranks, folder)
    logs = folder / "logs"
    logs.mkdir(parents=True)
    hush_ray()
    join_ray(2, None, lambda _: None)
    crew = RayCrew(blueprint, SharedMembers(blueprint, logs / "ranks.log"), logs)
    with driving(crew, folder) as driver:
        yield driver


def markdown(costs: Sequence[tuple[Way, Cost]]) -> str:
    """A row per number of ranks and way."""
    lines = ["| ranks | | seconds a step | driver's CPU | of it a rank |", "|---|---|---|---|---|"]
    for way, cost in costs:
        lines.append(
            f"| {cost.ranks:,} | {way.label} | {cost.step_s:.3f} s | {cost.driver_cpu_s:.3f} s | "
            f"{cost.driver_cpu_s / cost.ranks * 1e6:.0f} µs |"
        )
    return "\n".join(lines) + "\n"


def main(
    ranks: Annotated[list[int], typer.Option(help="Numbers of ranks.")] = list(RANKS),  # noqa: B006 - typer reads the default, nobody changes it
    repeats: Annotated[int, typer.Option(help="Spans whose median counts.")] = 3,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Measure, print the table, and write JSON and Markdown."""
    costs: list[tuple[Way, Cost]] = []
    for number in ranks:
        with tempfile.TemporaryDirectory() as folder, shared_crew(number, Path(folder)) as driver:
            costs += [(way, measure(driver, way, repeats)) for way in WAYS]
        print(markdown(costs), flush=True)
    output.mkdir(parents=True, exist_ok=True)
    result = {
        "load_average": os.getloadavg(),
        "cores": len(os.sched_getaffinity(0)),
        "ranks_a_process": RANKS_A_PROCESS,
        "measured": [{"way": way.label, **asdict(cost)} for way, cost in costs],
    }
    (output / "controller-simulated.json").write_text(json.dumps(result, indent=2) + "\n")
    (output / "controller-simulated.md").write_text(markdown(costs))


if __name__ == "__main__":
    typer.run(main)
