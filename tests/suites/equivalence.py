"""One process = any ranks: the same config's losses, step by step, local against ranks with
DeepSpeed.

`make equivalence` runs every case on small models and real data (`configs/equivalence.yaml`, or
`--config`); the tests a covering subset on tiny models. Dropout is off and arithmetic is fp32, so
that only the order of sums may differ.
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
from typing import Annotated, Any, Literal

import typer

from tests.suites.crews import Crews
from tests.suites.outcome_log import OutcomeLog
from tsarch.blueprint import resolve
from tsarch.clock import now_s
from tsarch.config import Config
from tsarch.config_loading import load_config
from tsarch.prepare import prepare_data
from tsarch.rank.crew import Crew
from tsarch.rank.local_crew import LocalCrew
from tsarch.telling.step_table import StepRecord, StepTable

Schedule = Literal["sequential", "overlapped", "joint"]
Optimizer = Literal["sgd", "adamw"]
Runner = Literal["processes", "ray"]
TOLERANCE: dict[Optimizer, float] = {"sgd": 1e-6, "adamw": 1e-5}
PAIRS = ((1, 1), (2, 1), (1, 2), (3, 2), (2, 3))
SCHEDULES: tuple[Schedule, ...] = ("sequential", "overlapped", "joint")
OPTIMIZERS: tuple[Optimizer, ...] = ("sgd", "adamw")
SGD_LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Case:
    """One thing to compare with one process."""

    schedule: Schedule
    optimizer: Optimizer
    replicas: tuple[int, int]
    zero_stages: tuple[int, int]
    sequence_parallel: int = 1
    """Replicas of the teacher that share contexts."""


@dataclass(frozen=True)
class Outcome:
    """How far a case's losses are from one process's."""

    case: Case
    num_steps: int
    max_relative_difference: float
    """Largest |a − b| / |b| over all steps and all loss terms."""
    tied_max_abs_diff: float
    seconds: float

    @property
    def is_equal(self) -> bool:
        """Whether it is within the stated tolerance, and the table's replicas are equal."""
        within = self.max_relative_difference <= TOLERANCE[self.case.optimizer]
        return within and self.tied_max_abs_diff == 0.0


def all_cases() -> list[Case]:
    """Every schedule, optimizer and pair of replica counts with all 16 pairs of ZeRO stages."""
    zero_stages = itertools.product(range(4), range(4))
    return [
        Case(*values) for values in itertools.product(SCHEDULES, OPTIMIZERS, PAIRS, zero_stages)
    ]


def sequence_parallel_cases() -> list[Case]:
    """Teachers that share contexts: every schedule and optimizer, 2 and 4 slices, two groups of 2,
    and every ZeRO stage."""
    shares = (((2, 1), 2), ((4, 1), 4), ((4, 2), 2))
    kinds = itertools.product(SCHEDULES, OPTIMIZERS, shares)
    return [
        Case(schedule, optimizer, pair, (place % 4, (place // 2) % 4), number)
        for place, (schedule, optimizer, (pair, number)) in enumerate(kinds)
    ]


def covering_cases() -> list[Case]:
    """Every schedule with every pair of replica counts, and every pair of ZeRO stages once."""
    pairs = itertools.product(PAIRS, SCHEDULES)
    zero_stages = list(itertools.product(range(4), range(4)))
    # 7 has no factor in common with 16: neighbours differ in both stages.
    cases = [
        Case(schedule, OPTIMIZERS[place % 2], pair, zero_stages[7 * place % 16])
        for place, (pair, schedule) in enumerate(pairs)
    ]
    return [*cases, Case("joint", "adamw", (2, 3), zero_stages[7 * 15 % 16])]


def comparable(config: Config, case: Case, num_steps: int, runner: Runner = "processes") -> Config:
    """`config` for a case: dropout off, fp32, CPU, a few steps."""
    quiet = {"dropout": 0.0, "attention_dropout": 0.0}
    rates = {}
    if case.optimizer == "sgd":
        names = ("teacher_learning_rate", "student_learning_rate", "embedding_learning_rate")
        rates = dict.fromkeys(names, SGD_LEARNING_RATE)
    topology = config.topology.model_copy(
        update={
            "runner": runner,
            "device": "cpu",
            "cpus_per_rank": 0.5,
            "threads": 1,
            "timeout_s": 60.0,
            "teacher": _stage(config, case, 0),
            "student": _stage(config, case, 1),
        }
    )
    assert config.teacher is not None
    assert config.student is not None
    return config.model_copy(
        update={
            "teacher": config.teacher.model_copy(update=quiet),
            "student": config.student.model_copy(update=quiet),
            "schedule": config.schedule.model_copy(
                update={
                    "name": case.schedule,
                    "max_steps": num_steps,
                    "micro_batches": max(config.schedule.micro_batches, 2),
                }
            ),
            "optimizer": config.optimizer.model_copy(update={"name": case.optimizer, **rates}),
            "topology": topology,
            "precision": "fp32",
        }
    )


def _stage(config: Config, case: Case, place: int) -> object:
    own = config.topology.teacher if place == 0 else config.topology.student
    return own.model_copy(
        update={
            "replicas": case.replicas[place],
            "zero_stage": case.zero_stages[place],
            "sequence_parallel": case.sequence_parallel if place == 0 else 1,
        }
    )


def local_rows(config: Config, num_steps: int) -> list[StepRecord]:
    """Rows of one process."""
    local = resolve(config).altered(topology={"runner": "local"})
    crew = LocalCrew(local, prepare_data(local))
    return train_rows(crew, num_steps)


def train_rows(crew: Crew, num_steps: int) -> list[StepRecord]:
    """Train the first steps with any crew."""
    table = StepTable(crew.topology)
    table.start_span(now_s())
    return [row for reports in crew.train(0, num_steps) for row in table.add(reports, 0)]


def relative_difference(rows: Sequence[StepRecord], reference: Sequence[StepRecord]) -> float:
    """Largest relative difference of any loss term of any step."""
    assert [row["step"] for row in rows] == [row["step"] for row in reference]
    largest = 0.0
    for row, other in zip(rows, reference, strict=True):
        names = [name for name in other if name.startswith("loss_")]
        assert set(names) <= set(row)
        for name in names:
            a, b = float(row[name] or 0.0), float(other[name] or 0.0)
            largest = max(largest, abs(a - b) / max(abs(b), 1e-12)) if a != b else largest
    return largest


def run_cases(
    config: Config,
    cases: Iterable[Case],
    num_steps: int,
    crews: Crews,
    runner: Runner = "processes",
) -> Iterator[Outcome]:
    """Compare all cases, those with the same replica counts on the same ranks."""
    references: dict[tuple[str, str], list[StepRecord]] = {}
    for case in sorted(cases, key=lambda case: (case.replicas, case.sequence_parallel)):
        started_s = time.perf_counter()
        wanted = comparable(config, case, num_steps, runner)
        key = (case.schedule, case.optimizer)
        if key not in references:
            references[key] = local_rows(wanted, num_steps)
        crew = crews.get(wanted)
        rows = train_rows(crew, num_steps)
        drift = max(s.tied_max_abs_diff for r in crew.stats().values() for s in r)
        difference = relative_difference(rows, references[key])
        yield Outcome(case, len(rows), difference, drift, time.perf_counter() - started_s)


def main(
    config: Annotated[Path, typer.Option(help="Config to compare.")] = Path(
        "configs/equivalence.yaml"
    ),
    steps: Annotated[int, typer.Option(help="Steps of each case.")] = 10,
    runner: Annotated[Runner, typer.Option(help="What the ranks are.")] = "processes",
    covering: Annotated[bool, typer.Option(help="A subset that covers all.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of equivalence.json and .md.")] = Path(
        "tests/suites/results"
    ),
) -> None:
    """Compare every case with one process; exit status 1 if one is outside its tolerance.

    A run that was ended goes on with the cases that are left.
    """
    loaded = load_config(config)
    log = OutcomeLog(
        output / "equivalence.jsonl", config=loaded.model_dump(), steps=[steps, runner]
    )
    outcomes = [_outcome(row) for row in log.done]
    done = {outcome.case for outcome in outcomes}
    wanted = covering_cases() if covering else all_cases()
    if loaded.teacher is not None and loaded.teacher.boundary_layer is None:
        wanted += sequence_parallel_cases()  # refused where states leave between layers
    left = [case for case in wanted if case not in done]
    with tempfile.TemporaryDirectory() as logs, closing(Crews(Path(logs))) as crews:
        for outcome in run_cases(loaded, left, steps, crews, runner):
            outcomes.append(outcome)
            log.add(asdict(outcome))
            case = outcome.case
            verdict = "equal" if outcome.is_equal else "DIFFERENT"
            print(
                f"{len(outcomes)}: {case.schedule} {case.optimizer} "
                f"{_pair(case)} "
                f"ZeRO {case.zero_stages[0]}/{case.zero_stages[1]}: "
                f"{outcome.max_relative_difference:.1e} {verdict} ({outcome.seconds:.0f} s)",
                flush=True,
            )
    print("\n" + markdown(outcomes, steps))
    (output / "equivalence.md").write_text(markdown(outcomes, steps))
    rows = [asdict(outcome) for outcome in outcomes]
    (output / "equivalence.json").write_text(json.dumps(rows, indent=2) + "\n")
    log.remove()
    if not all(outcome.is_equal for outcome in outcomes):
        raise typer.Exit(1)


def _outcome(row: dict[str, Any]) -> Outcome:
    case = row["case"]
    pairs = {name: tuple(case[name]) for name in ("replicas", "zero_stages")}
    return Outcome(**{**row, "case": Case(**{**case, **pairs})})


def _pair(case: Case) -> str:
    """Replicas of both stages, such as `2:1`; of teachers that share contexts `2:1 (2 slices)`."""
    pair = "{}:{}".format(*case.replicas)
    number = case.sequence_parallel
    return pair if number == 1 else f"{pair} ({number} slices)"


def markdown(outcomes: Sequence[Outcome], steps: int) -> str:
    """A row for each schedule, optimizer and pair of replica counts; a column for each ZeRO stage
    of the teacher, with the largest difference over those of the student."""
    lines = [
        f"{len(outcomes)} cases. Largest relative difference of any loss term over {steps} steps, "
        "against one process, by the teacher's ZeRO stage (the largest of the student's four):",
        "",
        "| schedule | optimizer | replicas | ZeRO 0 | ZeRO 1 | ZeRO 2 | ZeRO 3 | tolerance |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for outcome in outcomes:
        case = outcome.case
        own = found.setdefault((case.schedule, case.optimizer, _pair(case)), {})
        zero = case.zero_stages[0]
        own[zero] = max(own.get(zero, 0.0), outcome.max_relative_difference)
    for (schedule, optimizer, pair), own in sorted(found.items()):
        values = " | ".join(f"{own[zero]:.1e}" if zero in own else "–" for zero in range(4))
        tolerance = TOLERANCE["sgd" if optimizer == "sgd" else "adamw"]
        lines.append(f"| `{schedule}` | {optimizer} | {pair} | {values} | {tolerance:g} |")
    drift = max(outcome.tied_max_abs_diff for outcome in outcomes)
    lines += ["", f"Largest difference between replicas of the tied embedding: {drift:g}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
