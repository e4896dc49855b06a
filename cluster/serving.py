"""Runs that are served by replicas on Ray Serve, teachers and students as deployments of their own.
The app stays in this process; it prepares inputs and asks, so that replicas may die."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.exceptions import (
    ActorUnavailableError,
    ObjectLostError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from tsarch.cluster.serving_deploy import Fleet, Handles, Replicas, RunPlan
from tsarch.cluster.serving_metrics import FleetMetrics
from tsarch.cluster.serving_replica import Counts, Replied, Way, Ways
from tsarch.cluster.serving_version import Version
from tsarch.config import Mode
from tsarch.errors import UserError
from tsarch.inputs.rows import Input
from tsarch.prediction.prepared import Prepared
from tsarch.prediction.unread import OnUnread
from tsarch.run.saved_run import open_run
from tsarch.run.versions import current_folder
from tsarch.serving.batcher import Batching
from tsarch.serving.engine import Answered, RunInfo
from tsarch.serving.local_engine import Loading
from tsarch.serving.metrics import Metrics, QueueMetrics
from tsarch.serving.room import Room
from tsarch.serving.served_pair import check_problems
from tsarch.serving.stores import check_stores, open_stores
from tsarch.serving.swapping import goes_on, tell_swap
from tsarch.tasks.registry import is_generative

LOG = logging.getLogger("tsarch.serving")
_LOAD_S = 600.0
_WATCH_S = 5.0
_FIRST_WAIT_S, _MOST_WAIT_S = 0.02, 1.0
"""Before what a replica took with it is asked again."""
_LOST = (RayActorError, ActorUnavailableError, ObjectLostError, WorkerCrashedError)


class RayEngine:
    """Replicas of some runs, and what is asked of them.

    Args:
        folders: name of a run → its folder.
        address: of a Ray cluster to join; None: a Ray is started here, and ended.

    Raises:
        UserError: a run can't be loaded, a store is of none of them, there is no such cluster, or
            no room on it.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        replicas: Replicas,
        address: str | None = None,
        loading: Loading = Loading(),  # noqa: B008
        batching: Batching = Batching(),  # noqa: B008
        metrics: Metrics | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._folders = dict(folders)
        plans = [_plan(name, folder) for name, folder in folders.items()]
        stores = open_stores(loading.stores)
        self._fleet = Fleet(plans, replicas)
        self._handles = self._fleet.start(address, loading, batching, say)
        try:
            self._served = {name: asyncio.run(self._load(name)) for name in folders}
            check_stores(stores, {own.revision for own in self._served.values()})
        except BaseException:
            self._fleet.stop()
            raise
        self._rooms = {name: Room(batching.queue_tokens) for name in folders}
        self._locks = {name: asyncio.Lock() for name in folders}
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._metrics = metrics or Metrics()
        self._told = FleetMetrics()
        self._metrics.registry.register(self._told)
        self._metrics.registry.register(QueueMetrics(self._queues))

    def runs(self) -> tuple[RunInfo, ...]:
        """See `Engine`."""
        return tuple(own.info for own in self._served.values())

    async def predict(
        self,
        run: str,
        inputs: Sequence[Input],
        mode: Mode | None,
        on_unread: OnUnread = "error",
    ) -> Answered:
        """See `Engine`."""
        self._watch()
        version = self._served[run]  # the version that this request meets
        way = Way(mode or version.info.default_mode, on_unread)
        version.check(on_unread)
        room = self._rooms[run]
        with version.usage.used(), room.reserved_for(inputs) as reserve, room.measured():
            parts = await asyncio.to_thread(version.prepare, inputs)
            check_problems(_in_order(parts, [own.inputs.problems for _, own in parts]))
            num_tokens = sum(own.num_tokens for _, own in parts)
            reserve(num_tokens)
            replies = await asyncio.gather(*(self._ask(run, version, own, way) for _, own in parts))
        check_problems(_in_order(parts, [own.problems for own in replies]))
        answers = _in_order(parts, [own.answers for own in replies])
        found = [answers[number] for number in range(len(inputs))]
        return Answered(run, version.info.version, way.mode, found, num_tokens)

    async def reload(self, run: str) -> RunInfo:
        """See `Engine`."""
        async with self._locks[run]:
            old = self._served[run]
            with goes_on(old.info):
                if old.is_current():
                    return old.info
                new = await self._load(run)
            self._served[run] = new
        tell_swap(old.info, new.info, self._metrics)
        self._start(self._free(run, old))
        return new.info

    async def close(self) -> None:
        """See `Engine`."""
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.gather(*(own.usage.unused() for own in self._served.values()), *self._tasks)
        await asyncio.to_thread(self._fleet.stop)

    async def _load(self, run: str) -> Version:
        """The run's current version, in all replicas.

        Raises:
            UserError: it can't be read.
        """
        folder = current_folder(self._folders[run])
        found: list[Ways] = []
        for handle in self._handles[run].values():
            try:
                found += await _all(handle, "load", str(folder.absolute()))
            except RayError as error:
                raise getattr(error, "cause", None) or error from None
        return await asyncio.to_thread(Version, run, self._folders[run], folder, _joined(found))

    async def _free(self, run: str, old: Version) -> None:
        await old.usage.unused()
        kept = [str(self._served[run].folder.absolute())]
        for handle in self._handles[run].values():
            with suppress(Exception):  # one that died has nothing left
                await _all(handle, "keep", kept)

    async def _ask(self, run: str, version: Version, prepared: Prepared, way: Way) -> Replied:
        """Answers to inputs that are read together, from replicas that live."""
        if prepared.split is None:
            return Replied({}, {}, ())
        handles, key = self._handles[run], _key(version, prepared)

        def ask() -> Awaitable[Replied]:
            return _asked(handles, version, key, prepared, way)

        wait_s = _FIRST_WAIT_S
        while True:
            try:
                replied = await ask()
            except Exception as error:
                if not _is_lost(error):
                    raise
                LOG.warning("%s: a replica was lost, its work is asked again", run)
                self._told.lost[run] += 1
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _MOST_WAIT_S)
                continue
            self._told.tell(run, replied.counts)
            return replied

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _watch(self) -> None:
        """Begin to count replicas; the loop is known now."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._count())

    async def _count(self) -> None:
        while True:
            for run, handles in self._handles.items():
                with suppress(Exception):  # replicas may be dying
                    counts: list[Counts] = []
                    for handle in handles.values():
                        counts += await _all(handle, "counts")
                    self._told.replace(run, counts)
            await asyncio.sleep(_WATCH_S)

    def _queues(self) -> dict[str, tuple[int, int]]:
        return {name: (own.tokens, own.num_requests) for name, own in self._rooms.items()}


async def _asked(
    handles: Handles, version: Version, key: str, prepared: Prepared, way: Way
) -> Replied:
    """Answers by the replicas that a mode needs; states go from the teacher's to the student's."""
    folder, given = str(version.folder.absolute()), (prepared, way)
    teacher, student = handles.get("contexts"), handles.get("windows")
    if teacher is not None:
        teacher = teacher.options(session_id=key)
    if student is None or (teacher is not None and version.by_teacher(way.mode)):
        assert teacher is not None
        answer = teacher.answers.remote(folder, *given)
    elif teacher is None or way.mode not in version.ways.with_states:
        answer = student.answers.remote(folder, *given)
    else:
        read = teacher.states.remote(folder, prepared)
        answer = student.answers.remote(folder, *given, read)
    replied: Replied = await answer
    return replied


async def _all(handle: Any, method: str, *arguments: Any) -> list[Any]:
    """What all replicas of a half say."""
    found: list[Any] = await handle.broadcast(method, *arguments).results_async(timeout_s=_LOAD_S)
    return found


def _plan(name: str, folder: Path) -> RunPlan:
    try:
        blueprint, task_file = open_run(current_folder(folder))
    except UserError as error:
        raise UserError.single(f"run {name}", str(error)) from None
    return RunPlan(name, folder, blueprint, is_generative(task_file.task))


def _joined(found: Sequence[Ways]) -> Ways:
    """What halves know together."""
    return Ways(
        frozenset[Mode]().union(*(own.by_pair for own in found)),
        frozenset[Mode]().union(*(own.with_states for own in found)),
    )


def _key(version: Version, prepared: Prepared) -> str:
    """What a document is known by, to meet the replica that has read it."""
    assert prepared.split is not None
    digest = hashlib.sha256(version.info.version.encode())
    digest.update(prepared.split.token_ids.tobytes())
    return digest.hexdigest()


def _in_order(
    parts: Sequence[tuple[Sequence[int], Prepared]], found: Sequence[Mapping[int, Any]]
) -> dict[int, Any]:
    """Number of a request's input → what was found for it."""
    joined: dict[int, Any] = {}
    for (numbers, _), own in zip(parts, found, strict=True):
        joined |= {numbers[place]: value for place, value in own.items()}
    return joined


def _is_lost(error: BaseException) -> bool:
    """Whether a replica died with the work, which another can do."""
    causes = [error, error.__cause__, getattr(error, "cause", None)]
    return any(isinstance(own, _LOST) for own in causes)
