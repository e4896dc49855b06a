"""Training until it is done: after a failure of a rank or node, again from the last checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsarch.config import Config
from tsarch.errors import RankFailedError, RunFailedError, UserError

if TYPE_CHECKING:
    from tsarch.checkpoint.store import Store
    from tsarch.run.balance import Proposal
    from tsarch.run.prepare import Prepared
    from tsarch.run.progress import Reporter
    from tsarch.run.restarts import History
    from tsarch.run.resume import ResumePoint


@dataclass(frozen=True)
class Job:
    """A run: what is the same in all its attempts."""

    config: Config
    prepared: Prepared
    address: str | None
    """Of the Ray cluster to join."""
    path: Path
    """The run folder."""
    reporter: Reporter
    store: Store
    proposal: Proposal | None


def train(job: Job, point: ResumePoint | None) -> dict[str, Any]:
    """Train to the end; returns the summary.

    Raises:
        RunFailedError: failed more than `failure.max_restarts` times, or in a way that would only
            repeat.
    """
    from tsarch.run.restarts import History

    history = History()
    lost: frozenset[str] = frozenset()
    while True:
        try:
            return _attempt(job, point, history, lost)
        except RankFailedError as failure:
            history.failed(str(failure), failure.noticed_s)
            lost |= failure.lost_nodes
            point = _next_point(job, failure, len(history.restarts))


def gather(
    config: Config,
    prepared: Prepared,
    address: str | None,
    logs: Path,
    reporter: Reporter,
    restarted: bool = False,
    avoid: frozenset[str] = frozenset(),
) -> Any:
    """The crew: here, or on Ray (see `RayCrew.start`)."""
    if config.topology.runner == "local":
        from tsarch.run.crew import LocalCrew

        reporter.say("building both models in this process")
        return LocalCrew(config, prepared)
    from cluster.group import RayCrew
    from tsarch.run.capacity import rank_needs

    # After a failure there was room, and what failed may still hold it.
    needs = None if restarted else rank_needs(config, prepared)
    return RayCrew.start(
        config, address, logs, reporter.say, needs=needs, restarted=restarted, avoid=avoid
    )


def _attempt(
    job: Job, point: ResumePoint | None, history: History, avoid: frozenset[str]
) -> dict[str, Any]:
    """Gather ranks and train with them."""
    from tsarch.run.loop import Trainer

    restarted = bool(history.restarts)
    logs = job.path / "logs"
    try:
        crew = gather(job.config, job.prepared, job.address, logs, job.reporter, restarted, avoid)
    except UserError as error:
        if restarted:  # it was right before: the cluster has changed
            raise RunFailedError(f"can't start again: {error}") from None
        raise
    try:
        with _open_folder(job.path, crew.config, point, restarted) as folder:
            job.reporter.say(f"run folder: {job.path}")
            return Trainer(
                crew.config,
                job.prepared,
                crew,
                folder,
                job.reporter,
                job.store,
                job.proposal,
                point,
                history,
            ).run()
    finally:
        crew.close()


def _next_point(job: Job, failure: RankFailedError, num_failures: int) -> ResumePoint | None:
    """Where to go on after a failure; None: at the beginning.

    Raises:
        RunFailedError: nowhere.
    """
    from tsarch.run.resume import find_resume_point

    allowed = job.config.failure.max_restarts
    if num_failures > allowed:
        again = f"tsarch train {job.path} --resume"
        raise RunFailedError(
            f"{failure}\nended after {allowed} restarts (failure.max_restarts). Go on with: {again}"
        ) from None
    job.reporter.say(f"warning: {failure}")
    job.store.sweep()
    try:
        point = find_resume_point(job.store, job.reporter.say) if job.store.steps() else None
    except UserError as error:  # all checkpoints are damaged
        raise RunFailedError(f"{failure}\ncan't start again: {error}") from None
    place = "the beginning" if point is None else job.store.place(point.step)
    job.reporter.say(f"restart {num_failures} of at most {allowed}, from {place}")
    return point


def _open_folder(path: Path, config: Config, point: ResumePoint | None, restarted: bool) -> Any:
    """The run folder; on going on as it was at the checkpoint."""
    from tsarch.run.resume import restore_model
    from tsarch.run.run_folder import Lines, RunFolder

    if point is None:
        return RunFolder(path, config, Lines() if restarted else None)
    restore_model(point, path / "model")
    progress = point.progress
    lines = Lines(progress.num_rows, progress.num_evaluations, progress.num_rows)
    return RunFolder(path, config, lines)
