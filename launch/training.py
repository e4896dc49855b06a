"""`tsarch train`: check everything, gather the crew (here or on Ray), run the loop."""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsarch.blueprint import Blueprint, resolve
from tsarch.config import Config
from tsarch.errors import UserError, one_line
from tsarch.host_memory import give_back_freed_memory
from tsarch.run.supervision import Gather, Job, train
from tsarch.timings import TIMINGS

if TYPE_CHECKING:
    from tsarch.rank.members import Launch

_SHOWN_SAMPLES = 3


def run_training(
    config: Config,
    address: str | None = None,
    resume: bool = False,
    launch: Launch | None = None,
    timings: bool = False,
) -> dict[str, Any]:
    """Train a run, or go on with the one that `config` started; returns its summary.

    Args:
        address: Ray cluster to join, with `topology.runner: ray`; see `cluster_address`.
        launch: finds the ranks of `topology.runner: processes`; None: start them here.
        timings: say what the seconds went into.

    Raises:
        UserError: mistakes in the config or the data, found before Ray or a model starts; on
            `resume`, nothing to go on with.
    """
    TIMINGS.begin()
    quieten()
    from tsarch.telling.run_folder import claimed_folder, trained_summary
    from tsarch.telling.terminal import Reporter

    address = cluster_address(address)
    reporter = Reporter()
    blueprint = resolve(config)
    _import_early(blueprint, starts_ranks=launch is None)
    with claimed_folder(blueprint, resume) as path:
        summary = trained_summary(path)  # of a run that was ended while it told of itself
        if summary is None:
            summary = _trained(blueprint, address, path, resume, launch, reporter)
        _show_depths(reporter, blueprint, summary, path)
        _report(reporter, path)
    if timings:
        reporter.seconds(TIMINGS.phases())
    return summary


def _trained(
    blueprint: Blueprint,
    address: str | None,
    path: Path,
    resume: bool,
    launch: Launch | None,
    reporter: Any,
) -> dict[str, Any]:
    """The summary of the run in its folder."""
    is_here = address is None or blueprint.runner.name == "processes"
    store, point = _checkpoints(blueprint, path, resume, reporter)
    blueprint = _computing(blueprint, point, is_here, reporter)
    prepared = _prepare(blueprint, is_here, reporter)
    blueprint = _settled(blueprint, prepared, reporter)
    if point is not None:
        from tsarch.run.resume import check_same_inputs

        check_same_inputs(blueprint, prepared, point)
    here = partial(gather, address, launch)
    proposal = None
    if blueprint.runner.is_auto:
        blueprint, proposal = _balance(blueprint, prepared, here, path, reporter)
    job = Job(blueprint, prepared, here, path, reporter, store, proposal, address)
    summary = train(job, point).as_json()
    _show(reporter, blueprint, summary, path, proposal)
    return summary


def _import_early(blueprint: Blueprint, starts_ranks: bool) -> None:
    """Import models before all else, and meanwhile what ranks on this machine need."""
    from tsarch.models.lean_imports import import_models
    from tsarch.rank.preloaded import start_importing

    if blueprint.runner.name == "processes" and starts_ranks:
        start_importing()
    if not blueprint.runner.is_one_process:
        with TIMINGS.during("importing"):
            import_models()


def cluster_address(given: str | None) -> str | None:
    """The Ray to join: the one that is `given`, or that `RAY_ADDRESS` names, as inside a Ray job.
    None: one for this run alone (`local`).

    Raises:
        UserError: it is no address of a Ray.
    """
    named = os.environ.get("RAY_ADDRESS")
    address = given or named or "local"
    if address == "local":
        return None
    if address == "auto" or re.fullmatch(r"[^/]+:\d+", address):
        return address
    where = f"--address {given}" if given else f"RAY_ADDRESS: {named}"
    what = "is no address of a Ray to join: that is `auto` or HOST:PORT."
    if not given and "://" in address:
        what = "is where jobs are submitted, no Ray that a run can join."
    hint = "`--address local` starts a Ray for this run alone."
    raise UserError.single(where, what, hint)


def _prepare(blueprint: Blueprint, is_here: bool, reporter: Any) -> Any:
    """Check the config, the models and the memory, and read the data; `is_here`: ranks run on this
    machine.

    Raises:
        UserError: mistakes in them.
    """
    from tsarch.data.cache import cache_note
    from tsarch.planning.passed import PassedChecks
    from tsarch.planning.preflight import check_run, run_notes
    from tsarch.taught import teaching_runs

    reporter.say("checking the config and the models")
    with TIMINGS.during("checking the config and the models"):
        passed = PassedChecks(blueprint)
        check_run(blueprint, is_here, passed=passed)
        teaching_runs(blueprint)
        for note in run_notes(blueprint):
            reporter.say(f"note: {note}")
    reporter.say(f"reading and tokenising the data ({cache_note(blueprint.data)})")
    from tsarch.prepare import prepare_data
    from tsarch.run.self_score import with_notes

    prepared = with_notes(blueprint, prepare_data(blueprint), passed)
    _describe(reporter, prepared)
    with TIMINGS.during("checking the memory and what models compute"):
        from tsarch.planning.capacity import check_capacity
        from tsarch.planning.parity import parity_notes

        for note in check_capacity(blueprint, prepared, own_ray=is_here):
            reporter.say(note)
        for note in parity_notes(blueprint, prepared.training.token_ids, passed):
            reporter.say(note)
    give_back_freed_memory()  # of models that were tried out
    return prepared


def _computing(blueprint: Blueprint, point: Any, is_here: bool, reporter: Any) -> Blueprint:
    """The run as it can be computed: where a checkpoint is to go on, as before it.

    Raises:
        UserError: the checkpoint is another run's.
    """
    from tsarch.planning.arithmetic import computing_like, possible

    if point is None:
        return possible(blueprint, reporter.say) if is_here else blueprint
    from tsarch.run.resume import check_same_run

    saved = point.blueprint
    if saved.precision == "fp32":
        blueprint = possible(blueprint, reporter.say)
    blueprint = computing_like(blueprint, saved)
    check_same_run(blueprint, saved)
    return blueprint.placed_like(saved) if blueprint.runner.is_auto else blueprint


def _settled(blueprint: Blueprint, prepared: Any, reporter: Any) -> Blueprint:
    """The run with what is open measured."""
    from tsarch.planning.arithmetic import settle
    from tsarch.planning.layer_choice import with_layers

    blueprint = with_layers(blueprint, prepared, reporter.say)
    return settle(blueprint, prepared, reporter.say)


def _show_depths(reporter: Any, blueprint: Blueprint, summary: dict[str, Any], path: Path) -> None:
    """Measure the student with fewer layers, too, and add that to the summary."""
    shallow = [depth for own in blueprint.stages.values() for depth in own.depths]
    if not shallow or "depths" in summary:
        return
    from tsarch.run.depths import at_depth
    from tsarch.run.saved_run import evaluate_run
    from tsarch.tasks.registry import table_metrics
    from tsarch.telling.run_folder import write_atomically

    reporter.say(f"measuring the student with {', '.join(map(str, shallow))} layers")
    found = {
        str(depth): dict(evaluate_run(at_depth(path, depth), "test").evaluation.metrics)
        for depth in shallow
    }
    columns = {f"depth {depth}": own for depth, own in found.items()}
    reporter.table("test split, fewer layers", columns, table_metrics(blueprint.task.name))
    summary["depths"] = found
    for folder, own in [(path, summary)] + [
        (at_depth(path, int(depth)), {"after": metrics}) for depth, metrics in found.items()
    ]:
        write_atomically(folder / "summary.json", json.dumps(own, indent=2) + "\n")


def _show_profiles(reporter: Any, blueprint: Blueprint, path: Path) -> None:
    """Where a step's time went, if the run was profiled."""
    from tsarch.telling.profile_table import add_peaks, print_profiles, read_profiles

    profiles = read_profiles(path)
    if not profiles:
        return
    from tsarch.planning.peak import peak_flops_s

    in_bf16 = blueprint.precision == "bf16"
    peaks = {
        own: peak_flops_s(*own, in_bf16)
        for own in {(profile["device"], profile["threads"]) for profile in profiles}
    }
    add_peaks(path, [peaks[profile["device"], profile["threads"]] for profile in profiles])
    print_profiles(reporter.console, read_profiles(path))
    reporter.say(f"traces of the ranks, for https://ui.perfetto.dev: {path / 'profile'}")


def _show_errors(reporter: Any, path: Path) -> None:
    """Some rows of the test split with what was predicted."""
    from tsarch.telling.predictions import read_errors, show_sample

    errors = read_errors(path)
    if errors is not None:
        show_sample(reporter.console, errors)


@TIMINGS.during("writing the report")
def _report(reporter: Any, path: Path) -> None:
    from tsarch.telling.report import write_report

    try:
        reporter.say(f"report: {write_report(path)}")
    except Exception as error:  # of a resumed run with rows of its own; it is done all the same
        reporter.say(f"warning: no report can be made: {one_line(error)}")


def _checkpoints(blueprint: Blueprint, path: Path, resume: bool, reporter: Any) -> tuple[Any, Any]:
    """Where the run's checkpoints go, and the one to go on from.

    Raises:
        UserError: another run's checkpoints are there; on `resume`, none.
    """
    from tsarch.checkpoint.store import Store
    from tsarch.run.resume import checkpoint_url, find_resume_point

    store = Store(checkpoint_url(blueprint, path))
    try:
        taken = blueprint.checkpoint.folder is not None and bool(store.steps())
    except Exception as error:  # every protocol has errors of its own
        raise UserError.single(
            f"checkpoint.folder: {store.url}", f"can't be read: {one_line(error)}."
        ) from None
    if not resume:
        if taken:
            raise UserError.single(
                f"checkpoint.folder: {store.url}",
                "holds checkpoints already.",
                "Choose another folder, or go on with their run: --resume.",
            )
        return store, None
    store.sweep()
    point = find_resume_point(store, reporter.say)
    reporter.say(f"going on from {store.place(point.step)}")
    return store, point


def _balance(
    blueprint: Blueprint, prepared: Any, gather: Gather, path: Any, reporter: Any
) -> tuple[Blueprint, Any]:
    """`topology: auto`: measure the stages; the run with what they should have, and why."""
    from tsarch.planning.balance_report import proposal_line, proposal_table
    from tsarch.planning.stage_trial import chosen, propose, trial

    reporter.say("topology: auto: measuring both stages on one rank each")
    crew = gather(trial(blueprint), prepared, path / "logs" / "auto", reporter)
    try:
        proposal = propose(crew, blueprint, prepared)
    finally:
        crew.close()
    reporter.console.print(proposal_table(proposal))
    reporter.say(proposal_line(proposal, one_process=blueprint.runner.is_one_process))
    return chosen(blueprint, proposal), proposal


def gather(
    address: str | None,
    launch: Launch | None,
    blueprint: Blueprint,
    prepared: Any,
    logs: Path,
    reporter: Any,
    restarted: bool = False,
    avoid: frozenset[str] = frozenset(),
) -> Any:
    """The crew: in this process, in processes that `launch` finds (None: new ones), or on the Ray
    at `address` (see `RayCrew.start`)."""
    if blueprint.runner.is_one_process:
        from tsarch.rank.local_crew import LocalCrew

        reporter.say("building both models in this process")
        return LocalCrew(blueprint, prepared)
    if blueprint.runner.name == "processes":
        from tsarch.rank.members import spawn
        from tsarch.rank.preloaded import rank_context
        from tsarch.rank.process_crew import ProcessCrew

        launch = launch or partial(spawn, context=rank_context())
        return ProcessCrew.start(blueprint, logs, reporter.say, launch)
    from tsarch.cluster.ray_crew import RayCrew
    from tsarch.planning.capacity import rank_needs

    # After a failure there was room, and what failed may still hold it.
    needs = None if restarted else rank_needs(blueprint, prepared)
    return RayCrew.start(
        blueprint, address, logs, reporter.say, needs=needs, restarted=restarted, avoid=avoid
    )


def quieten() -> None:
    """Keep libraries' chatter out of the terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # retries, line by line
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A call of a thread that outlives its Ray would start another one, which nobody ends.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # we say what is wrong
    # Its import sets its level anew; here it is only imported by accelerate, not used.
    logging.getLogger("DeepSpeed").addFilter(_is_error)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # "building the font cache"


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _describe(reporter: Any, prepared: Any) -> None:
    for name, size in prepared.sizes.items():
        reporter.say(f"{name}: {size}")
    for note in prepared.notes:
        reporter.say(f"note: {note}")


def _show(
    reporter: Any, blueprint: Blueprint, summary: dict[str, Any], path: Any, proposal: Any
) -> None:
    from tsarch.tasks.registry import table_metrics

    columns = {"after": summary["after"]}
    if summary["before"] is not None:
        columns = {"before": summary["before"], **columns}
    reporter.table("test split", columns, table_metrics(blueprint.task.name))
    for sample in summary["samples"][:_SHOWN_SAMPLES]:
        reporter.sample(sample)
    if not summary["samples"]:
        _show_errors(reporter, path)
    busy = summary["stage_busy_share"]
    reporter.say(
        f"{summary['steps']} steps in {summary['train_s']:.0f} s of training · "
        f"{summary['tokens_per_s']:,.0f} tokens/s · busy: "
        + ", ".join(f"{stage} {share:.0%}" for stage, share in busy.items())
    )
    reporter.say(f"weights, metrics and curves: {path}")
    if proposal is not None:
        from tsarch.planning.balance_report import outcome_line

        step_s = summary["train_s"] / summary["steps"]
        reporter.say(outcome_line(proposal, step_s, summary["bubble_fraction"]))
    _show_profiles(reporter, blueprint, path)
