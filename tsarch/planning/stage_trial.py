"""`topology: auto`: measure both stages on one rank each, and propose replicas or threads.

The trial trains for real, so its weights are thrown away: the run starts anew with the proposal.
It is `sequential`, in which a stage works while the other one waits: the times are each one's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from tsarch.config import Config
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
from tsarch.topology import STAGES, Stage, stage_named, stage_topology

_NUM_STEPS = 4
_NUM_TURNS = 3

Options = Mapping[Stage, Sequence[StageTimes]]


def trial_config(config: Config) -> Config:
    """The config of the crew that measures: one rank a stage, every instruction timed."""
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"trace": True}),
            "schedule": config.schedule.model_copy(update={"name": "sequential"}),
            "embedding": config.embedding.model_copy(update={"check_every": 0}),
            "topology": config.topology.model_copy(update={"auto": False}),
        }
    )


def propose(crew: Crew, config: Config, prepared: Prepared) -> Proposal:
    """Measure with a crew of `trial_config`, and choose."""
    supply = crew.supply(config.topology)
    num_steps = _num_steps(config, prepared)
    if config.topology.runner == "local":
        times = measure(crew, num_steps)
        alone = {stage: (own,) for stage, own in times.items()}
        only = predict("one_process", 1, alone, dict.fromkeys(STAGES, 1), "replicas")
        return Proposal("replicas", supply, {supply.num_cores: times}, only, only)
    if supply.device == "cpu" and config.topology.threads is None:
        return _propose_threads(crew, config, supply, num_steps)
    return _propose_replicas(crew, config, prepared, supply, num_steps)


def resolved(config: Config, proposal: Proposal) -> Config:
    """The config with the proposal in the place of `auto`."""
    topology = config.topology
    update: dict[str, Any] = {"auto": False}
    if topology.runner != "local":
        for stage in STAGES:
            counts: dict[str, Any] = {proposal.unit: proposal.chosen.counts[stage]}
            update[stage.value] = stage_topology(topology, stage).model_copy(update=counts)
    return config.model_copy(update={"topology": topology.model_copy(update=update)})


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


def _num_steps(config: Config, prepared: Prepared) -> int:
    """A few steps, whole cycles of the alternation if the run is long enough."""
    alternation = config.schedule.alternation
    cycle = max(alternation.teacher_steps, alternation.student_steps)
    wanted = cycle * ceil(_NUM_STEPS / cycle)
    return min(wanted, num_training_steps(config, batch_plan(config, prepared.splits["train"])))


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
    crew: Crew, config: Config, prepared: Prepared, supply: Supply, num_steps: int
) -> Proposal:
    times = measure(crew, num_steps)
    shares = busiest_shares(config, prepared.splits["train"], supply.num_devices - 1)
    options = {
        stage: with_replicas(
            times[stage], shares[stage], stage_topology(config.topology, stage).zero_stage > 0
        )
        for stage in STAGES
    }
    threads = config.topology.threads or 0
    plain = dict.fromkeys(STAGES, 1)
    return _proposal(
        config, "replicas", supply, {threads: times}, options, supply.num_devices, plain
    )


def _propose_threads(crew: Crew, config: Config, supply: Supply, num_steps: int) -> Proposal:
    num_cores = max(int(supply.num_cores / max(config.topology.cpus_per_rank, 1.0)), len(STAGES))
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
    return _proposal(config, "threads", supply, measured, options, num_cores, plain)


def _proposal(
    config: Config,
    unit: Unit,
    supply: Supply,
    measured: Mapping[int, Mapping[Stage, StageTimes]],
    options: Options,
    budget: int,
    plain: Mapping[Stage, int],
) -> Proposal:
    way: Way = config.schedule.name
    num_micro_batches = config.schedule.micro_batches
    chosen: Prediction = choose(way, num_micro_batches, options, budget, unit)
    without = predict(way, num_micro_batches, options, plain, unit)
    return Proposal(unit, supply, dict(measured), chosen, without)
