"""`make faults`, its half without Ray: ranks in plain processes die, fail and freeze in every
schedule and at every ZeRO stage, and the others go on.

    python -m tests.suites.mending [--short] [--only TEXT]…   results: results/mending.{json,md}

Models are tiny, so that the seconds are those of noticing and of coming back, with nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.helpers import tiny_raw
from tests.suites.fault_run import Fault, FaultyProcess
from tests.suites.forked import forked
from tests.suites.observed_run import losses_of, same_weights
from tsarch.config_loading import parse_config
from tsarch.launch.training import run_training
from tsarch.rank.members import spawn
from tsarch.rank.process_crew import ProcessCrew

OUTPUT = Path("tests/suites/results/mending.md")
NOTICED_LIMIT_S = 2.0
DOWN_LIMIT_S = {1: 5.0, 0: 10.0}
"""Number of spares → from noticing a failure to the end of the next step, on two free cores."""
_HANG_TIMEOUT_S = 6.0
_FAULT_STEP = 13


@dataclass(frozen=True)
class Place:
    """Where a fault happens."""

    schedule: str = "overlapped"
    replicas: tuple[int, int] = (1, 1)
    zero: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """For tables."""
        (teachers, students), (teacher, student) = self.replicas, self.zero
        return f"{self.schedule}, {teachers} + {students} ranks, ZeRO {teacher} and {student}"


@dataclass(frozen=True)
class Case:
    """A fault, and where."""

    kind: str
    rank: int
    instruction: str
    place: Place = Place()
    spares: int = 1

    @property
    def name(self) -> str:
        """For tables."""
        spare = "with a spare" if self.spares else "without a spare"
        return f"{self.kind} rank {self.rank} at {self.instruction}, {self.place.name}, {spare}"


@dataclass
class Outcome:
    """What came of a case."""

    name: str
    noticed_s: float
    down_s: float
    said: str
    same_weights: bool
    same_losses: bool
    mistakes: list[str] = field(default_factory=list)


def _cases() -> Iterator[Case]:
    """The matrix: every kind of fault, stage, schedule, ZeRO stage and number of ranks."""
    for spares in (1, 0):
        for rank in (0, 1):
            yield Case("kill", rank, "Forward", spares=spares)
    yield Case("kill", 0, "FinishTiedExchange")
    yield Case("kill", 1, "RecvHidden")
    yield Case("raise", 0, "Backward")
    yield Case("raise", 1, "OptimizerStep")
    yield Case("freeze", 0, "SendHidden")
    yield Case("freeze", 1, "Backward")
    for schedule in ("sequential", "joint"):
        for rank in (0, 1):
            yield Case("kill", rank, "Backward", Place(schedule))
    for zero in (0, 1, 2, 3):
        for rank in (0, 1, 2):
            kind = "raise" if rank == 1 else "kill"
            yield Case(kind, rank, "Backward", Place("overlapped", (2, 1), (zero, zero)))
    yield Case("kill", 2, "Forward", Place("joint", (1, 2), (2, 3)))
    yield Case("kill", 0, "Forward", Place("sequential", (2, 2), (3, 1)))


CASES = tuple(_cases())
SHORT = tuple(
    case
    for case in CASES
    if case.place == Place() or (case.place.zero == (2, 2) and case.rank == 2)
)
"""Those of two ranks in `overlapped`, and one of a stage of two that stays as it is."""


def train(folder: Path, place: Place, spares: int, faults: Sequence[Fault] = ()) -> Path:
    """A run of a few dozen steps; its folder."""
    (teachers, students), (teacher, student) = place.replicas, place.zero
    raw = tiny_raw(
        folder,
        run={"name": "run", "folder": str(folder / "run")},
        teacher={"dropout": 0.1},
        student={"dropout": 0.1},
        schedule={"name": place.schedule, "epochs": 6, "micro_batches": 2},
        evaluation={"before": False, "every_epochs": 6},
        checkpoint={"every_s": None},
        failure={"hang_timeout_s": _HANG_TIMEOUT_S},
        topology={
            "runner": "processes",
            "threads": 1,
            "cpus_per_rank": 0.25,
            "spares": spares,
            "teacher": {"replicas": teachers, "zero_stage": teacher},
            "student": {"replicas": students, "zero_stage": student},
        },
    )
    start = ProcessCrew.start.__func__  # type: ignore[attr-defined]

    def start_faulty(cls: type[ProcessCrew], *args: Any, **kwargs: Any) -> ProcessCrew:
        crew: ProcessCrew = start(cls, *args, make=partial(FaultyProcess, list(faults)), **kwargs)
        crew.start_spares(wait=True)  # a run that has trained for a while has them
        return crew

    ProcessCrew.start = classmethod(start_faulty)  # type: ignore[assignment,method-assign]
    try:
        # Those that take a failed rank's place come as they always do.
        run_training(parse_config(raw, "mending"), launch=partial(spawn, context=forked()))
    finally:
        ProcessCrew.start = classmethod(start)  # type: ignore[assignment,method-assign]
    return folder / "run"


def do(case: Case, folder: Path, reference: Path) -> Outcome:
    """Let a case happen; `reference`: the run without it."""
    marker = folder / "fault"
    is_exchange = case.instruction.endswith("Exchange")  # two of them a step
    fault = Fault.model_validate(
        {
            "kind": case.kind,
            "rank": case.rank,
            "step": _FAULT_STEP * (2 if is_exchange else 1),
            "instruction": case.instruction,
            "marker": marker,
        }
    )
    run = train(folder, case.place, case.spares, [fault])
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    failure = summary["failures"][0]
    outcome = Outcome(
        case.name,
        failure["noticed_s"] - marker.stat().st_mtime,
        failure["down_s"],
        failure["cause"],
        same_weights(run, reference),
        losses_of(run) == losses_of(reference),
    )
    outcome.mistakes = list(_mistakes(case, outcome, summary["restarts"]))
    return outcome


def _mistakes(case: Case, outcome: Outcome, num_restarts: int) -> Iterator[str]:
    if num_restarts != 1:
        yield f"{num_restarts} restarts"
    if not outcome.same_weights or not outcome.same_losses:
        yield "other weights or losses than without the fault"
    if f"(rank {case.rank})" not in outcome.said:
        yield "another rank is blamed"
    if case.kind != "freeze" and outcome.noticed_s > NOTICED_LIMIT_S:
        yield f"noticed after more than {NOTICED_LIMIT_S:g} s"
    if outcome.down_s > (limit_s := DOWN_LIMIT_S[case.spares]):
        yield f"the next step came after more than {limit_s:g} s"


def run_cases(cases: Sequence[Case], folder: Path) -> list[Outcome]:
    """Let cases happen one after the other."""
    references: dict[Place, Path] = {}
    outcomes = []
    for number, case in enumerate(cases):
        if case.place not in references:
            own = folder / f"reference-{len(references)}"
            own.mkdir(parents=True)
            references[case.place] = train(own, case.place, spares=0)
        own = folder / f"case-{number}"
        own.mkdir()
        outcomes.append(do(case, own, references[case.place]))
        print(_row(outcomes[-1]), flush=True)
    return outcomes


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The table of the results."""
    lines = [
        "| what | noticed after s | next step after s | weights and losses | |",
        "| --- | --- | --- | --- | --- |",
        *map(_row, outcomes),
    ]
    return "\n".join(
        [
            f"Ranks in plain processes on {len(os.sched_getaffinity(0))} cores, tiny models, a "
            "thread a rank; `same`: bitwise those of the run without the fault. A frozen rank is "
            f"noticed after `failure.hang_timeout_s: {_HANG_TIMEOUT_S:g}`.",
            "",
            *lines,
            "",
        ]
    )


def _row(o: Outcome) -> str:
    same = "same" if o.same_weights and o.same_losses else "OTHER"
    mistakes = "; ".join(f"**{mistake}**" for mistake in o.mistakes)
    return f"| {o.name} | {o.noticed_s:.1f} | {o.down_s:.1f} | {same} | {mistakes} |"


def main(
    only: Annotated[list[str] | None, typer.Option(help="A part of a case's name.")] = None,
    short: Annotated[bool, typer.Option(help="A dozen cases, in some minutes.")] = False,
    keep: Annotated[Path | None, typer.Option(help="Folder for the runs, to look at.")] = None,
    output: Annotated[Path, typer.Option(help="Where the table goes.")] = OUTPUT,
) -> None:
    """Let all cases happen and write the table."""
    cases = SHORT if short else CASES
    chosen = [c for c in cases if only is None or any(text in c.name for text in only)]
    folder = Path(tempfile.mkdtemp(prefix="tsarch-mending-")) if keep is None else keep
    started_s = time.monotonic()
    outcomes = run_cases(chosen, folder)
    if keep is None:
        shutil.rmtree(folder)
    output.write_text(markdown(outcomes), encoding="utf-8")
    output.with_suffix(".json").write_text(
        json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n", encoding="utf-8"
    )
    bad = [outcome for outcome in outcomes if outcome.mistakes]
    seconds = time.monotonic() - started_s
    print(f"{len(outcomes)} cases in {seconds:.0f} s, {len(bad)} not as wanted")
    if bad:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
