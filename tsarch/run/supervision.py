"""Training until it is done: after a failure of a rank or node, again from the last checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tsarch.blueprint import Blueprint
from tsarch.errors import (
    HeadLostError,
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
    from tsarch.rank.crew import Crew, Mended
    from tsarch.run.kept_states import KeptStates
    from tsarch.run.restarts import History
    from tsarch.run.resume import ResumePoint
    from tsarch.run.summary import RunSummary
    from tsarch.telling.run_folder import RunFolder
    from tsarch.telling.terminal import Reporter
    from tsarch.telling.trackers import Trackers


_MOST_MENDINGS = 3
"""Failures amid mending, after which all ranks are started anew."""


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
    from tsarch.run.kept_states import KeptStates
    from tsarch.run.restarts import History

    history, kept = History(), KeptStates()
    lost: frozenset[str] = frozenset()
    crew: Crew | None = None
    try:
        while True:
            try:
                crew = crew or _gather(job, bool(history.restarts), lost)
                return _attempt(job, crew, point, history, kept)
            except RankFailedError as failure:
                _note(job, history, failure)
                lost |= failure.lost_nodes
                crew, mended = _mended(job, crew, failure)
                point = _next_point(job, mended, kept)
                place = "the beginning" if point is None else point.place
                _say_restart(job, history, mended, place)
            except HeadLostError as error:
                raise RunFailedError(f"{error} {job.how_to_go_on}") from None
            except InterruptedRunError as error:
                message = f"{error} {job.how_to_go_on}"
                raise InterruptedRunError(error.signal_number, message) from None
    finally:
        if crew is not None:
            crew.close()


def _gather(job: Job, restarted: bool, avoid: frozenset[str]) -> Crew:
    """New ranks."""
    logs = job.path / "logs"
    try:
        with TIMINGS.during("starting ranks"):
            return job.gather(job.blueprint, job.prepared, logs, job.reporter, restarted, avoid)
    except (UserError, NoPlaceError) as error:
        if restarted:  # it was right before: the cluster has changed
            raise RunFailedError(f"can't start again: {error} {job.how_to_go_on}") from None
        raise


def _attempt(
    job: Job, crew: Crew, point: ResumePoint | None, history: History, kept: KeptStates
) -> RunSummary:
    """Train with the ranks that there are."""
    from tsarch.run.loop import Trainer
    from tsarch.telling.run_folder import RunFolder

    folder, restarted = RunFolder(job.path), bool(history.restarts)
    with _open_trackers(job, crew.blueprint, point, restarted) as trackers:
        _compare_clocks(crew, folder)
        if not restarted:
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
            kept,
        ).run()


def _compare_clocks(crew: Crew, folder: RunFolder) -> None:
    """Note how far the clocks of ranks are ahead of this process's, where the time that asking them
    takes lets it be told."""
    from tsarch.clock import now_s
    from tsarch.rank.api import RankApi
    from tsarch.telling.logs import write_clocks

    asked_s = now_s()
    times = crew.ask(RankApi.clock_s)
    middle_s, error_s = (asked_s + now_s()) / 2, (now_s() - asked_s) / 2
    ahead_s = {rank: time_s - middle_s for rank, time_s in enumerate(times)}
    write_clocks(folder.logs, {r: own for r, own in ahead_s.items() if abs(own) > error_s})


def _note(job: Job, history: History, failure: RankFailedError) -> None:
    """Remember a failure.

    Raises:
        RunFailedError: the run may not go on after it.
    """
    history.failed(str(failure), failure.noticed_s)
    if history.repeats and not failure.lost_nodes:
        again = "the same before the first step, twice: once more would end so too."
        raise RunFailedError(f"{failure}\n{again} {job.how_to_go_on}") from None
    allowed = job.blueprint.failure.max_restarts
    if len(history.restarts) > allowed:
        ended = f"ended after {allowed} restarts (failure.max_restarts)."
        raise RunFailedError(f"{failure}\n{ended} {job.how_to_go_on}") from None
    job.reporter.say(f"warning: {failure}")


def _mended(
    job: Job, crew: Crew | None, failure: RankFailedError
) -> tuple[Crew | None, Mended | None]:
    """The crew, whole again; None: other ranks are to be gathered."""
    for _ in range(_MOST_MENDINGS):
        if crew is None:
            break
        try:
            mended = crew.mend(failure)
        except RankFailedError as another:
            job.reporter.say(f"warning: {another}")
            failure = another
            continue
        if mended is not None:
            return crew, mended
        break
    if crew is not None:
        crew.close()
    return None, None


def _next_point(job: Job, mended: Mended | None, kept: KeptStates) -> ResumePoint | None:
    """Where to go on after a failure: the last cut in memory, or a checkpoint that is newer than
    what a lost node has left of those; None: at the beginning.

    Raises:
        RunFailedError: nowhere.
    """
    from tsarch.run.resume import find_resume_point

    job.store.sweep()
    in_memory = _point_in_memory(job, mended, kept)
    newest = max(job.store.steps(), default=-1)
    if newest < 0 or (in_memory is not None and newest <= in_memory.step):
        return in_memory
    try:
        saved = find_resume_point(job.store, job.reporter.say)
    except UserError as error:  # all checkpoints are damaged
        if in_memory is not None:
            return in_memory
        raise RunFailedError(f"can't start again: {error}") from None
    return saved if in_memory is None or saved.step > in_memory.step else in_memory


def _point_in_memory(job: Job, mended: Mended | None, kept: KeptStates) -> ResumePoint | None:
    from tsarch.run.resume import ResumePoint

    if mended is None or mended.cut is None:
        return None
    step, places = mended.cut
    state = kept.at(step)
    return None if state is None else ResumePoint(job.store, step, state, job.blueprint, places)


def _say_restart(job: Job, history: History, mended: Mended | None, place: str) -> None:
    number, allowed = len(history.restarts), job.blueprint.failure.max_restarts
    how = "all ranks anew"
    if mended is not None:
        engines = " and ".join(stage.name for stage in mended.stages)
        num_ranks = job.blueprint.topology.num_ranks
        how = f"{mended.num_replaced} of {num_ranks} ranks and the engines of {engines} anew"
    job.reporter.say(f"restart {number} of at most {allowed}, {how}, from {place}")


def _open_trackers(
    job: Job, blueprint: Blueprint, point: ResumePoint | None, restarted: bool
) -> Trackers:
    """The run folder and the trackers; on going on as they were at the checkpoint."""
    from tsarch.run.resume import restore_model
    from tsarch.telling.run_folder import RunFolder
    from tsarch.telling.tracker import TrackedRun
    from tsarch.telling.trackers import open_trackers

    folder = RunFolder(job.path)
    folder.write_config(blueprint)
    job.reporter.keep_in(folder.logs)
    if point is not None:
        restore_model(point, folder.model)
    trackers = open_trackers(TrackedRun.of(job.path, blueprint), job.reporter.say)
    if point is not None:
        trackers.rewind(point.progress.num_rows, point.progress.num_evaluations)
    elif restarted:
        trackers.rewind(0, 0)
    return trackers
