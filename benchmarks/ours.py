"""tsarch's own sides of the speed benchmark: the three schedules on two ranks, and `local`.

Times are of the steady state: the steps before and the last one, with the pipeline's filling and
draining, are left out. A run of n steps takes one step more under `overlapped`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer

from benchmarks.bench_job import CONFIG, JOINT_MICRO_BATCHES, BenchJob, Counts
from benchmarks.sides import CORES, SideRun, write_runs
from tsarch.blueprint import Blueprint, resolve
from tsarch.clock import now_s
from tsarch.cluster.ray_crew import RayCrew
from tsarch.config import Config
from tsarch.feeds import training_feed
from tsarch.planning.arithmetic import settle
from tsarch.prepare import prepare_data
from tsarch.rank.crew import Crew
from tsarch.rank.local_crew import LocalCrew
from tsarch.stage.build import is_unpadded
from tsarch.telling.step_table import StepRecord, StepTable
from tsarch.topology import STAGES, Stage, Topology

Schedule = Literal["sequential", "overlapped", "joint"]
SCHEDULES: tuple[Schedule, ...] = ("sequential", "overlapped", "joint")


def with_schedule(config: Config, name: Schedule) -> Config:
    """`config` under a schedule; `joint` with its micro-batches."""
    micro_batches = JOINT_MICRO_BATCHES if name == "joint" else config.schedule.micro_batches
    update = {"name": name, "micro_batches": micro_batches}
    return config.model_copy(update={"schedule": config.schedule.model_copy(update=update)})


def local_config(config: Config) -> Config:
    """`config` in one process of two threads; one process has nothing to overlap."""
    topology = config.topology.model_copy(update={"runner": "local", "threads": CORES})
    return with_schedule(config, "sequential").model_copy(update={"topology": topology})


def counts(job: BenchJob, blueprint: Blueprint, steps: range) -> Counts:
    """Tokens and positions of `steps` on one rank a stage."""
    feed = training_feed(blueprint, job.split, job.plan, Topology.pair(1, 1))
    total = Counts(0, 0, 0)
    sizes = {
        stage: np.sum if is_unpadded(blueprint, stage) else np.size for stage in blueprint.stages
    }
    for step in steps:
        total += Counts(feed.plan(step).num_tokens, 0, 0)
        for micro_batch in range(blueprint.schedule.micro_batches):
            contexts = feed.context_batch(step, micro_batch, Stage.TEACHER, 0)
            windows = feed.window_batches(step, micro_batch, Stage.STUDENT, 0)
            total += Counts(
                0,
                int(sizes[Stage.TEACHER](contexts.mask)),
                sum(int(sizes[Stage.STUDENT](own.mask)) for own in windows),
            )
    return total


def train_rows(crew: Crew, num_steps: int) -> list[StepRecord]:
    """Rows of the first `num_steps` steps."""
    table = StepTable(crew.topology)
    table.start_span(now_s())
    return [row for reports in crew.train(0, num_steps) for row in table.add(reports, 0)]


def side_run(side: str, rows: list[StepRecord], counts: Counts, one_process: bool) -> SideRun:
    """The measurement from the rows of the timed steps."""
    wall_s = sum(float(row["wall_s"] or 0.0) for row in rows)
    busy_s = {s.value: sum(float(row[f"busy_{s}_s"] or 0.0) for row in rows) for s in STAGES}
    return SideRun(
        side,
        len(rows),
        counts.num_tokens,
        counts.teacher_positions,
        counts.student_positions,
        wall_s,
        CORES * wall_s if one_process else sum(busy_s.values()),
        {} if one_process else busy_s,
        [float(row["loss_teacher"] or 0.0) + float(row["loss_student"] or 0.0) for row in rows],
    )


def time_crew(
    crew: Crew, side: str, job: BenchJob, timed: range, one_process: bool = False
) -> SideRun:
    """Train with a crew that is built already; only the steps `timed` count."""
    rows = train_rows(crew, timed.stop + 1)[timed.start : timed.stop]
    return side_run(side, rows, counts(job, crew.blueprint, timed), one_process)


def run(config_file: Path, timed: range, precision: str) -> list[SideRun]:
    """All of tsarch's sides, one after the other, computing as a run of them would."""
    job = BenchJob.load(config_file, precision)
    prepared = prepare_data(job.blueprint)

    def settled(config: Config) -> Blueprint:
        return settle(resolve(config), prepared, print)

    runs = []
    with tempfile.TemporaryDirectory() as logs:
        first = settled(with_schedule(job.config, SCHEDULES[0]))
        crew = RayCrew.start(first, None, Path(logs), print)
        try:
            for name in SCHEDULES:
                crew.build(settled(with_schedule(job.config, name)))
                runs.append(time_crew(crew, name, job, timed))
        finally:
            crew.close()
    local = settled(local_config(job.config))
    crew_of_one = LocalCrew(local, prepared)
    runs.append(time_crew(crew_of_one, "local", job, timed, one_process=True))
    return runs


def main(
    output: Annotated[Path, typer.Option(help="JSON file of the measurements.")],
    config: Annotated[Path, typer.Option(help="Config of the job.")] = CONFIG,
    steps: Annotated[int, typer.Option(help="Timed steps.")] = 8,
    warm_up: Annotated[int, typer.Option(help="Steps before them.")] = 2,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
) -> None:
    """Time tsarch's schedules and `local`."""
    write_runs(run(config, range(warm_up, warm_up + steps), precision), output)


if __name__ == "__main__":
    typer.run(main)
