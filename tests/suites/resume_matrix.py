"""Resuming on other ranks: checkpoints of every topology go on in every other.

{1:1, 2:1, 1:2, 3:2} replicas × ZeRO {0, 2, 3} and one process, each to each. The losses after the
cut must be those of one process that was never interrupted, within the tolerances of
`tests/suites/equivalence.py`; the cut is amid an epoch, so in `overlapped` a batch is in flight.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.suites.crews import Crews
from tests.suites.equivalence import (
    OPTIMIZERS,
    TOLERANCE,
    Case,
    Optimizer,
    Schedule,
    comparable,
    local_rows,
    relative_difference,
)
from tests.suites.outcome_log import OutcomeLog
from tsarch.blueprint import resolve
from tsarch.checkpoint.cut import Cut, Resume
from tsarch.checkpoint.manifest import Manifest
from tsarch.checkpoint.store import Store
from tsarch.clock import now_s
from tsarch.config import Config
from tsarch.config_loading import load_config
from tsarch.prepare import prepare_data
from tsarch.rank.crew import Crew, CutTaken, Reports
from tsarch.rank.local_crew import LocalCrew
from tsarch.rank.pacer import Advance, TakeCut
from tsarch.telling.step_table import StepRecord, StepTable
from tsarch.topology import Topology

PAIRS = ((1, 1), (2, 1), (1, 2), (3, 2))
ZERO_STAGES = (0, 2, 3)


@dataclass(frozen=True)
class Place:
    """Where a run trains: ranks, or (no replicas) one process."""

    replicas: tuple[int, int] | None
    zero_stage: int = 0
    sequence_parallel: int = 1
    """Replicas of the teacher that share contexts."""

    def __str__(self) -> str:
        if self.replicas is None:
            return "local"
        slices = "" if self.sequence_parallel == 1 else f" ({self.sequence_parallel} slices)"
        return f"{self.replicas[0]}:{self.replicas[1]} ZeRO {self.zero_stage}{slices}"


@dataclass(frozen=True)
class Move:
    """A checkpoint written in one place that goes on in another."""

    schedule: Schedule
    optimizer: Optimizer
    source: Place
    target: Place


@dataclass(frozen=True)
class Outcome:
    """How far the losses after a move are from one process's."""

    move: Move
    num_steps: int
    max_relative_difference: float
    seconds: float

    @property
    def is_equal(self) -> bool:
        """Whether it is within the tolerance."""
        return self.max_relative_difference <= TOLERANCE[self.move.optimizer]


def all_places() -> list[Place]:
    """One process, and every pair of replica counts at every ZeRO stage."""
    return [Place(None), *(Place(*p) for p in itertools.product(PAIRS, ZERO_STAGES))]


def all_moves(schedule: Schedule = "overlapped") -> list[Move]:
    """Each place to each, with the optimizers in turn."""
    pairs = itertools.product(all_places(), all_places())
    return [Move(schedule, OPTIMIZERS[i % 2], *pair) for i, pair in enumerate(pairs)]


def write_checkpoint(crew: Crew, store: Store, tick: int) -> dict[str, Any]:
    """Train from the start up to a tick behind the cut before `tick`; the driver's state at it."""
    table = StepTable(crew.topology)
    table.start_span(now_s())
    state: dict[str, Any] = {}
    num_ticks = crew.begin(0, tick + 1)
    store.begin(tick)
    for command in (Advance(tick), TakeCut(Cut(store.url, tick)), Advance(num_ticks - tick)):
        crew.send(command)
    for event in crew.events():
        match event:
            case Reports():
                table.add(event.reports, 0)
            case CutTaken():
                state = table.state()
    written = crew.checkpoint_written(wait=True)
    assert written is not None
    assert all(own.error is None for own in written), written
    files = {name: entry for own in written for name, entry in own.files.items()}
    store.commit(Manifest(tick, files))
    return state


def go_on(
    crew: Crew, store: Store, tick: int, state: dict[str, Any], source: Topology, num_steps: int
) -> list[StepRecord]:
    """Rows of the steps that a checkpoint's run has not finished."""
    table = StepTable(crew.topology)
    table.restore(state, source)
    table.start_span(now_s())
    resume = Resume(Cut(store.url, tick), tick, same_ranks=False)
    reports = crew.train(0, num_steps, resume)
    return [row for own in reports for row in table.add(own, 0)]


def config_of(config: Config, move: Move, place: Place, num_steps: int) -> Config:
    """`config` in a place; no dropout, fp32, CPU."""
    stages = (place.zero_stage, place.zero_stage)
    replicas, slices = place.replicas or (1, 1), place.sequence_parallel
    case = Case(move.schedule, move.optimizer, replicas, stages, slices)
    found = comparable(config, case, num_steps)
    if place.replicas is not None:
        return found
    topology = found.topology.model_copy(update={"runner": "local"})
    return found.model_copy(update={"topology": topology})


def _crew(config: Config, place: Place, crews: Crews) -> Crew:
    """Newly built models in a place."""
    if place.replicas is None:
        blueprint = resolve(config)
        return LocalCrew(blueprint, prepare_data(blueprint))
    return crews.get(config)


def run_moves(
    config: Config, moves: Iterable[Move], num_steps: int, tick: int, crews: Crews
) -> Iterator[Outcome]:
    """Write the checkpoint of every source once, then go on from them in every target."""
    moves = list(moves)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        states: dict[Any, dict[str, Any]] = {}
        for move in sorted(moves, key=lambda m: str(m.source)):
            source = (move.schedule, move.optimizer, move.source)
            if source not in states:
                own = config_of(config, move, move.source, num_steps)
                crew = _crew(own, move.source, crews)
                states[source] = write_checkpoint(crew, _store(folder, move), tick)
        references: dict[Any, list[StepRecord]] = {}
        # Backwards, since the last source's ranks are still there.
        for move in sorted(moves, key=lambda m: str(m.target), reverse=True):
            started_s = time.perf_counter()
            wanted = config_of(config, move, move.target, num_steps)
            key = (move.schedule, move.optimizer)
            if key not in references:
                references[key] = local_rows(wanted, num_steps)
            state = states[move.schedule, move.optimizer, move.source]
            topology = Topology.pair(*(move.source.replicas or (1, 1)))
            crew = _crew(wanted, move.target, crews)
            rows = go_on(crew, _store(folder, move), tick, state, topology, num_steps)
            expected = references[key][-len(rows) :]
            difference = relative_difference(rows, expected)
            yield Outcome(move, len(rows), difference, time.perf_counter() - started_s)


def _store(folder: Path, move: Move) -> Store:
    source = str(move.source).replace(":", "-").replace(" ", "-")
    return Store(str(folder / move.schedule / move.optimizer / source))


def main(
    config: Annotated[Path, typer.Option(help="Config to move.")] = Path(
        "configs/equivalence.yaml"
    ),
    steps: Annotated[int, typer.Option(help="Steps in all.")] = 8,
    cut: Annotated[int, typer.Option(help="Steps before the checkpoint.")] = 3,
    output: Annotated[Path, typer.Option(help="Folder of resume.md.")] = Path(
        "tests/suites/results"
    ),
) -> None:
    """Move every checkpoint to every place; exit status 1 if losses are outside the tolerance."""
    loaded = load_config(config)
    log = OutcomeLog(output / "resume.jsonl", config=loaded.model_dump(), steps=[steps, cut])
    done = {json.dumps(row["move"]) for row in log.done}
    left = [move for move in all_moves() if json.dumps(asdict(move)) not in done]
    with tempfile.TemporaryDirectory() as logs, closing(Crews(Path(logs))) as crews:
        for outcome in run_moves(loaded, left, steps, cut, crews):
            log.add({**asdict(outcome), "is_equal": outcome.is_equal})
            move, verdict = outcome.move, "equal" if outcome.is_equal else "DIFFERENT"
            print(
                f"{len(log.done)}: {move.optimizer} {move.source} → {move.target}: "
                f"{outcome.max_relative_difference:.1e} {verdict} ({outcome.seconds:.0f} s)",
                flush=True,
            )
    text = markdown(log.done, steps, cut)
    print("\n" + text)
    (output / "resume.md").write_text(text)
    equal = all(row["is_equal"] for row in log.done)
    log.remove()
    if not equal:
        raise typer.Exit(1)


def markdown(rows: Sequence[dict[str, Any]], steps: int, cut: int) -> str:
    """The largest difference from every source to every target."""
    places = [str(place) for place in all_places()]
    found = {
        (str(_place(row["move"]["source"])), str(_place(row["move"]["target"]))): row
        for row in rows
    }
    lines = [
        f"{len(rows)} moves: {steps} steps of `overlapped`, a checkpoint after {cut} (amid an "
        "epoch, a batch in flight), the rest in another place. Largest relative difference of any "
        "loss after the cut against one process that was not interrupted.",
        "",
        "| from \\ to | " + " | ".join(places) + " |",
        "|---" * (len(places) + 1) + "|",
    ]
    for source in places:
        cells = [found.get((source, target)) for target in places]
        values = ["–" if c is None else f"{c['max_relative_difference']:.0e}" for c in cells]
        lines.append(f"| {source} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def _place(raw: dict[str, Any]) -> Place:
    replicas = raw["replicas"]
    return Place(None if replicas is None else (replicas[0], replicas[1]), raw["zero_stage"])


if __name__ == "__main__":
    typer.run(main)
