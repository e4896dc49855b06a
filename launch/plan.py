"""`tsarch plan`: what a run needs, before anything runs; without weights and GPUs."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsarch.blueprint import Blueprint, resolve
from tsarch.config import Config
from tsarch.errors import UserError
from tsarch.planning.hardware import Hardware, hardware_named, read_hardware, with_options

if TYPE_CHECKING:
    from tsarch.planning.capacity import Feeding
    from tsarch.planning.plan_search import Option, Planner
    from tsarch.planning.run_plan import RunPlan
    from tsarch.prepare import Prepared

_STEPS = 1000
"""Of a run without data whose config doesn't say."""
_NO_ROOM = 3
_BUDGET_S = 2.0
"""Seconds of trying out operations on this machine's CPUs."""


@dataclass(frozen=True)
class PlanRequest:
    """What to plan for."""

    gpu: str | None = None
    hardware: Path | None = None
    price: float | None = None
    network: str | None = None
    devices: int | None = None
    search: bool = False
    full: bool = False


@dataclass(frozen=True)
class Planned:
    """A plan, and what led to it."""

    plan: RunPlan
    change: Option | None
    """The cheapest one that makes it fit, if it doesn't."""
    options: list[Option] | None
    """What a search found, if there was one."""
    notes: list[str]


def make_plan(config: Config, request: PlanRequest) -> Planned:
    """Plan a run.

    Raises:
        UserError: mistakes in the config, its data or the hardware.
    """
    from tsarch.planning.plan_search import fitting, has_both, search

    blueprint = resolve(config)
    if request.devices is not None and not request.search:
        raise UserError.single(f"--devices {request.devices}", "is for --search.", "Give both.")
    if request.search and not has_both(blueprint):
        what = "there is nothing to share out: one process, or one stage alone."
        raise UserError.single("--search", what)
    planner, notes = _planner_and_notes(config, request)
    plan = planner.plan()
    change = None if plan.fits else fitting(planner)
    options = search(planner, request.devices or plan.num_ranks) if request.search else None
    return Planned(plan, change, options, notes)


def plan_ways(config: Config, request: PlanRequest) -> Planner:
    """What plans a run, shared out in any way.

    Raises:
        UserError: as `make_plan`.
    """
    return _planner_and_notes(config, request)[0]


def _planner_and_notes(config: Config, request: PlanRequest) -> tuple[Planner, list[str]]:
    given = _hardware(request)
    with tempfile.TemporaryDirectory() as folder:
        planner, notes = _planner(resolve(config), given, request, Path(folder))
    return replace(planner, opening=_opening(config)), notes


def _opening(config: Config) -> tuple[str, ...]:
    """What `--set` must take before keys of `topology`: `auto` chooses them, and the word alone
    has no keys."""
    from tsarch.config_changes import changed_keys

    own = [key for key in changed_keys(config) if key.startswith("topology.")]
    if "topology.auto" not in own:
        return ()
    return ("topology={}",) if len(own) == 1 else ("topology.auto=false",)


def _hardware(request: PlanRequest) -> Hardware | None:
    """The hardware that was asked for; None: this machine's CPUs."""
    if request.gpu is not None and request.hardware is not None:
        raise UserError.single("--gpu", "names the hardware, and so does --hardware.", "Give one.")
    found = None if request.gpu is None else hardware_named(request.gpu)
    found = found if request.hardware is None else read_hardware(request.hardware)
    return None if found is None else with_options(found, request.price, request.network)


def _planner(
    blueprint: Blueprint, given: Hardware | None, request: PlanRequest, folder: Path
) -> tuple[Planner, list[str]]:
    from tsarch.planning.arithmetic import computing_on
    from tsarch.planning.full_contexts import full_contexts
    from tsarch.planning.known_models import with_known_models
    from tsarch.planning.op_timing import cpu_hardware
    from tsarch.planning.plan_search import Planner
    from tsarch.planning.preflight import check_run
    from tsarch.planning.stage_profile import profile, threads_of, workload
    from tsarch.planning.threads import num_threads
    from tsarch.prepare import prepare_data

    blueprint, notes = with_known_models(blueprint, folder)
    if given is None and blueprint.runner.device == "cuda":
        given = with_options(hardware_named("h100"), request.price, request.network)
        notes.append("no GPU type was given (--gpu): planned for h100")
    if blueprint.tokenizer_name == str(folder):  # another run must not find its tokens
        blueprint = blueprint.altered(data={"cache_folder": str(folder / "cache")})
    blueprint = computing_on(blueprint, given is not None and not given.is_cpu, notes.append)
    check_run(blueprint, own_ray=False, planned=True)
    prepared = full_contexts(blueprint) if request.full else prepare_data(blueprint, asks=False)
    is_guessed = request.full or blueprint.tokenizer_name == str(folder)
    feeding, told = _feeding(blueprint, None if request.full else prepared, is_guessed)
    notes += told
    threads = max(threads_of(own, blueprint) for own in blueprint.stages.values())
    hardware = given or with_options(cpu_hardware(threads), request.price, request.network)
    share_s = _BUDGET_S / len(blueprint.stages)
    with num_threads(1):  # what is computed beside trials is small: threads would only wait
        profiles = {
            stage: profile(blueprint, prepared, stage, hardware, share_s)
            for stage in blueprint.stages
        }
    work = workload(blueprint, prepared)
    if request.full:
        work = replace(work, num_steps=blueprint.schedule.max_steps or _STEPS)
        notes.append(
            f"without data: {work.num_steps:,} steps (schedule.max_steps) of full contexts"
        )
    planner = Planner(blueprint, profiles, work, hardware, feeding)
    if blueprint.tokenizer_name == str(folder) and not blueprint.table.frozen:
        planner = _with_every_row(planner)
        notes.append("which tokens the texts have is not known: every row of the table is trained")
    return planner, notes


def _feeding(
    blueprint: Blueprint, prepared: Prepared | None, is_guessed: bool
) -> tuple[Feeding, list[str]]:
    """What steps hold for the replicas, and remarks; `prepared` None: full contexts.

    Raises:
        UserError: no step feeds all replicas; where steps are guessed, that is a remark.
    """
    from tsarch.planning.capacity import Feeding

    if prepared is None:
        feeding = Feeding.full(blueprint)
    else:
        feeding = Feeding.of(blueprint, prepared.training)
    mistakes = list(feeding.mistakes())
    if mistakes and not is_guessed:
        raise UserError(mistakes)
    return feeding, [f"with steps as they are guessed here, {own}" for own in mistakes]


def _with_every_row(planner: Planner) -> Planner:
    """The most that the table can take: all rows have optimizer state, and of a step's batch every
    token is another one."""
    rows = planner.blueprint.table.shape[0]
    profiles = {
        stage: replace(own, counts=replace(own.counts, trained_rows=rows))
        for stage, own in planner.profiles.items()
    }
    work = replace(planner.work, touched_rows=min(rows, int(planner.work.batch_tokens)))
    return replace(planner, profiles=profiles, work=work)


def show_plan(config: Config, request: PlanRequest, as_json: bool) -> int:
    """Plan a run, and print it; the exit status."""
    from tsarch.launch.training import quieten
    from tsarch.models.lean_imports import lean_imports

    quieten()
    with lean_imports():
        made = make_plan(config, request)
        from tsarch.planning import plan_report
    if as_json:
        found = plan_report.as_json(made.plan, made.change, made.options)
        typer.echo(json.dumps({**found, "notes": made.notes}, indent=2))
        return 0 if made.plan.fits else _NO_ROOM
    from tsarch.telling.terminal import Reporter

    reporter = Reporter()
    for note in made.notes:
        reporter.say(f"note: {note}")
    reporter.console.print(plan_report.rank_table(made.plan))
    for line in plan_report.plan_lines(made.plan, made.change):
        reporter.say(line)
    for line in plan_report.option_lines(made.options) if made.options is not None else ():
        reporter.say(line)
    return 0 if made.plan.fits else _NO_ROOM


def plan(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[
        list[str], typer.Option("--set", help="Change a key: --set topology.teacher.replicas=4.")
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    gpu: Annotated[
        str | None,
        typer.Option(help="GPU type to plan for, such as h100. Default: this machine's CPUs."),
    ] = None,
    hardware: Annotated[
        Path | None, typer.Option(help="YAML file that describes other hardware.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of a device, an hour.")] = None,
    network: Annotated[
        str | None, typer.Option(help="Between nodes: 100Gbit, or 12.5GB (a second).")
    ] = None,
    search: Annotated[
        bool,
        typer.Option("--search", help="Propose replicas, ZeRO stages, micro-batches and schedule."),
    ] = False,
    devices: Annotated[
        int | None,
        typer.Option(min=2, help="With --search: devices to share out. Default: the config's."),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Without data: take all contexts and windows to be full."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a run needs: memory, traffic, time and cost, before anything runs.

    Exit status 3: it does not fit.
    """
    from tsarch.config_loading import load_config

    request = PlanRequest(gpu, hardware, price, network, devices, search, full)
    raise typer.Exit(show_plan(load_config(config, overrides), request, as_json))
