"""`topology: auto`: measure both stages on one rank each, and propose replicas or threads.

The trial trains for real, so its weights are thrown away: the run starts anew with the proposal.
It is `sequential`, in which a stage works while the other one waits: the times are each one's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from tsarch.blueprint import Blueprint
from tsarch.feeds import batch_plan, num_training_steps
from tsarch.planning.balance import (
    Prediction,
    Proposal,
    StageTimes,
    Unit,
    Way,
    choose,
    predict,
    with_replicas,
    with_threads,
)
from tsarch.planning.load_sharing import busiest_shares
from tsarch.prepare import Prepared
from tsarch.rank.api import RankApi
from tsarch.rank.crew import Crew
from tsarch.rank.supply import Supply
from tsarch.records import TickReport, TraceEvent
from tsarch.specs import ScheduleSpec
from tsarch.topology import STAGES, Stage, stage_named

_NUM_STEPS = 4
_NUM_TURNS = 3

Options = Mapping[Stage, Sequence[StageTimes]]


def trial(blueprint: Blueprint) -> Blueprint:
    """Of the crew that measures: one rank a stage, every instruction timed."""
    return blueprint.altered(
        run={"trace": True},
        schedule={"name": "sequential"},
        embedding={"check_every": 0},
        topology={"auto": False},
    )


def propose(crew: Crew, blueprint: Blueprint, prepared: Prepared) -> Proposal:
    """Measure with a crew of `trial`, and choose."""
    supply = crew.supply(blueprint.runner)
    num_steps = _num_steps(blueprint, prepared)
    if blueprint.runner.is_one_process:
        times = measure(crew, num_steps)
        alone = {stage: (own,) for stage, own in times.items()}
        only = predict("one_process", 1, alone, dict.fromkeys(STAGES, 1), "replicas")
        return Proposal("replicas", supply, {supply.num_cores: times}, only, only)
    if supply.device == "cpu" and blueprint.runner.threads is None:
        return _propose_threads(crew, blueprint, supply, num_steps)
    return _propose_replicas(crew, blueprint, prepared, supply, num_steps)


def chosen(blueprint: Blueprint, proposal: Proposal) -> Blueprint:
    """The run with the proposal in the place of `auto`."""
    counts: dict[str, Any] = {}
    if not blueprint.runner.is_one_process:
        found = proposal.chosen.counts
        counts = {stage.value: {proposal.unit: found[stage]} for stage in STAGES}
    return blueprint.altered(topology={"auto": False, **counts})


def measure(crew: Crew, num_steps: int) -> dict[Stage, StageTimes]:
    """Mean times of both stages over the run's first `num_steps` steps.

    The steps are run several times: the first turn is warm-up, of the others the fastest counts,
    so that what else the machine does is seen less.
    """
    ticks: dict[tuple[Stage, int], list[StageTimes]] = {}
    for turn in range(_NUM_TURNS):
        for reports in crew.train(0, num_steps):
            for report in reports if turn > 0 else ():
                times = ticks.setdefault((stage_named(report.stage), report.tick), [])
                times.append(times_of_tick(report))
    fastest = {place: _fastest(times) for place, times in ticks.items()}
    return {stage: _mean([t for (s, _), t in fastest.items() if s is stage]) for stage in STAGES}


def times_of_tick(report: TickReport) -> StageTimes:
    """Times of a traced tick of one rank in `sequential`.

    Of the two exchanges the one with the stage's own gradient counts: around its optimizer step.
    On a GPU the other one's time has waiting for the other stage in it.
    """
    events = report.events
    compute_s = sum(_work_s(event) for event in events if event.kind == "compute")
    steps = [place for place, event in enumerate(events) if event.kind == "step"]
    if not steps:
        return StageTimes(compute_s, 0.0, 0.0)
    (place,) = steps
    around = (events[place - 1], *events[place + 1 : place + 2])
    exchange_s = sum(_work_s(event) for event in around if event.kind == "tied")
    return StageTimes(compute_s, _work_s(events[place]), exchange_s)


def _num_steps(blueprint: Blueprint, prepared: Prepared) -> int:
    """A few steps, whole cycles of the alternation if the run is long enough."""
    alternation = blueprint.schedule.alternation
    cycle = max(alternation.teacher_steps, alternation.student_steps)
    wanted = cycle * ceil(_NUM_STEPS / cycle)
    plan = batch_plan(blueprint, prepared.training)
    return min(wanted, num_training_steps(blueprint, plan))


def _work_s(event: TraceEvent) -> float:
    return event.end_s - event.start_s - event.wait_s


def _fastest(times: Sequence[StageTimes]) -> StageTimes:
    """Part by part."""
    return StageTimes(
        min(t.compute_s for t in times),
        min(t.step_s for t in times),
        min(t.exchange_s for t in times),
    )


def _mean(times: Sequence[StageTimes]) -> StageTimes:
    """Means over steps; of the exchange over those in which the stage was updated, since both
    stages take part in every exchange."""
    exchanges_s = [t.exchange_s for t in times if t.exchange_s > 0] or [0.0]
    return StageTimes(
        sum(t.compute_s for t in times) / len(times),
        sum(t.step_s for t in times) / len(times),
        sum(exchanges_s) / len(exchanges_s),
    )


def _propose_replicas(
    crew: Crew, blueprint: Blueprint, prepared: Prepared, supply: Supply, num_steps: int
) -> Proposal:
    times = measure(crew, num_steps)
    shares = busiest_shares(blueprint, prepared.training, supply.num_devices - 1)
    options = {
        stage: with_replicas(times[stage], shares[stage], own.engine.zero_stage > 0)
        for stage, own in blueprint.stages.items()
    }
    threads = blueprint.runner.threads or 0
    plain = dict.fromkeys(STAGES, 1)
    return _proposal(
        blueprint.schedule,
        "replicas",
        supply,
        {threads: times},
        options,
        supply.num_devices,
        plain,
    )


def _propose_threads(crew: Crew, blueprint: Blueprint, supply: Supply, num_steps: int) -> Proposal:
    cpus = max(blueprint.runner.cpus_per_rank, 1.0)
    num_cores = max(int(supply.num_cores / cpus), len(STAGES))
    most = num_cores - 1
    crew.ask(RankApi.set_threads, 1)
    measured = {1: measure(crew, num_steps)}
    if most > 1:
        crew.ask(RankApi.set_threads, most)
        measured[most] = measure(crew, num_steps)
    options = {
        stage: with_threads(measured[1][stage], measured[most][stage], most) for stage in STAGES
    }
    plain = dict.fromkeys(STAGES, num_cores // len(STAGES))
    return _proposal(blueprint.schedule, "threads", supply, measured, options, num_cores, plain)


def _proposal(
    schedule: ScheduleSpec,
    unit: Unit,
    supply: Supply,
    measured: Mapping[int, Mapping[Stage, StageTimes]],
    options: Options,
    budget: int,
    plain: Mapping[Stage, int],
) -> Proposal:
    way: Way = schedule.name
    best: Prediction = choose(way, schedule.micro_batches, options, budget, unit)
    without = predict(way, schedule.micro_batches, options, plain, unit)
    return Proposal(unit, supply, dict(measured), best, without)
