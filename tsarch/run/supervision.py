"""Training until it is done: after a failure of a rank or node, again from the last checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tsarch.blueprint import Blueprint
from tsarch.errors import (
    InterruptedRunError,
    NoPlaceError,
    RankFailedError,
    RunFailedError,
    UserError,
)
from tsarch.timings import TIMINGS

if TYPE_CHECKING:
    from tsarch.checkpoint.store import Store
    from tsarch.planning.balance import Proposal
    from tsarch.prepare import Prepared
    from tsarch.rank.crew import Crew
    from tsarch.run.restarts import History
    from tsarch.run.resume import ResumePoint
    from tsarch.run.summary import RunSummary
    from tsarch.telling.run_folder import RunFolder
    from tsarch.telling.terminal import Reporter
    from tsarch.telling.trackers import Trackers


class Gather(Protocol):
    """Makes the crew of a run, here or on a cluster."""

    def __call__(
        self,
        blueprint: Blueprint,
        prepared: Prepared,
        logs: Path,
        reporter: Reporter,
        restarted: bool = False,
        avoid: frozenset[str] = frozenset(),
    ) -> Crew:
        """`restarted`: after a failure, so nodes may be missing. `avoid`: ids of nodes that no rank
        may be placed on.

        Raises:
            UserError: there is no place for the ranks.
            RankFailedError: a rank failed while it started.
        """


@dataclass(frozen=True)
class Job:
    """A run: what is the same in all its attempts."""

    blueprint: Blueprint
    prepared: Prepared
    gather: Gather
    path: Path
    """The run folder."""
    reporter: Reporter
    store: Store
    proposal: Proposal | None
    address: str | None = None
    """Ray cluster that it joins."""

    @property
    def how_to_go_on(self) -> str:
        """For messages of its end."""
        from tsarch.run.advice import how_to_go_on

        return how_to_go_on(self.path, self.store, self.address)


def train(job: Job, point: ResumePoint | None) -> RunSummary:
    """Train to the end; returns the summary.

    Raises:
        RunFailedError: failed more than `failure.max_restarts` times, or in a way that would only
            repeat.
        InterruptedRunError: it was told to end.
    """
    from tsarch.run.restarts import History

    history = History()
    lost: frozenset[str] = frozenset()
    while True:
        try:
            return _attempt(job, point, history, lost)
        except RankFailedError as failure:
            history.failed(str(failure), failure.noticed_s)
            if history.repeats and not failure.lost_nodes:
                again = "the same before the first step, twice: once more would end so too."
                raise RunFailedError(f"{failure}\n{again} {job.how_to_go_on}") from None
            lost |= failure.lost_nodes
            point = _next_point(job, failure, len(history.restarts))
        except InterruptedRunError as error:
            message = f"{error} {job.how_to_go_on}"
            raise InterruptedRunError(error.signal_number, message) from None


def _attempt(
    job: Job, point: ResumePoint | None, history: History, avoid: frozenset[str]
) -> RunSummary:
    """Gather ranks and train with them."""
    from tsarch.run.loop import Trainer
    from tsarch.telling.run_folder import RunFolder

    restarted = bool(history.restarts)
    logs = job.path / "logs"
    try:
        with TIMINGS.during("starting ranks"):
            crew = job.gather(job.blueprint, job.prepared, logs, job.reporter, restarted, avoid)
    except (UserError, NoPlaceError) as error:
        if restarted:  # it was right before: the cluster has changed
            raise RunFailedError(f"can't start again: {error} {job.how_to_go_on}") from None
        raise
    try:
        folder = RunFolder(job.path)
        with _open_trackers(folder, crew.blueprint, point, restarted) as trackers:
            job.reporter.say(f"run folder: {job.path}")
            return Trainer(
                crew.blueprint,
                job.prepared,
                crew,
                folder,
                trackers,
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

    allowed = job.blueprint.failure.max_restarts
    if num_failures > allowed:
        ended = f"ended after {allowed} restarts (failure.max_restarts)."
        raise RunFailedError(f"{failure}\n{ended} {job.how_to_go_on}") from None
    job.reporter.say(f"warning: {failure}")
    job.store.sweep()
    try:
        point = find_resume_point(job.store, job.reporter.say) if job.store.steps() else None
    except UserError as error:  # all checkpoints are damaged
        raise RunFailedError(f"{failure}\ncan't start again: {error}") from None
    place = "the beginning" if point is None else job.store.place(point.step)
    job.reporter.say(f"restart {num_failures} of at most {allowed}, from {place}")
    return point


def _open_trackers(
    folder: RunFolder, blueprint: Blueprint, point: ResumePoint | None, restarted: bool
) -> Trackers:
    """The run folder and the trackers; on going on as they were at the checkpoint."""
    from tsarch.run.resume import restore_model
    from tsarch.telling.trackers import open_trackers

    folder.write_config(blueprint)
    if point is not None:
        restore_model(point, folder.model)
    trackers = open_trackers(folder.path, blueprint.topology, blueprint.run.trace)
    if point is not None:
        trackers.rewind(point.progress.num_rows, point.progress.num_evaluations)
    elif restarted:
        trackers.rewind(0, 0)
    return trackers
