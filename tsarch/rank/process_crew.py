"""The crew of plain processes on this host, one a rank: DeepSpeed inside each stage as on Ray, and
no Ray. Tensors go from rank to rank; the driver's commands and the answers go over pipes."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

from tsarch.blueprint import Blueprint
from tsarch.checkpoint.slots import HeldSlots, newest_common
from tsarch.clock import now_s
from tsarch.errors import RankFailedError
from tsarch.rank.api import MEANWHILE, ProcessApi, name_of
from tsarch.rank.crew import Draining, Kept, Pending
from tsarch.rank.diagnosis import Cause, Kind, Scene, find_cause, tell
from tsarch.rank.lines import Line
from tsarch.rank.members import Launch, Member, Spares, spawn
from tsarch.rank.mending import SPARES_AFTER_S, MendedCrew
from tsarch.rank.pacer import Pace
from tsarch.rank.preloaded import rank_context
from tsarch.rank.process import RankProcess
from tsarch.rank.process_watch import ProcessWatch
from tsarch.rank.serving import Make, Start
from tsarch.rank.status import log_file, look_at, note_file
from tsarch.rank.supply import Supply
from tsarch.specs import RunnerSpec

P = ParamSpec("P")
A = TypeVar("A")

HOST = "127.0.0.1"
_PACE = Pace(num_queued=2, max_ticks=256, target_s=0.5)
_LOOK_S = 0.2
"""How often the driver looks for failures while it waits for answers."""
_CAUSE_TIMEOUT_S = 8.0
"""How long to look for the one to blame, when ranks have lost another one."""
_ANSWER_TIMEOUT_S = 3.0
_END_PATIENCE_S = 2.0


class _Question(NamedTuple):
    """Asked of one rank."""

    line: Line
    number: int


class ProcessCrew(MendedCrew):
    """All ranks of a run on this host."""

    def __init__(
        self,
        blueprint: Blueprint,
        starts: Sequence[Start],
        members: Sequence[Member],
        slots: Sequence[HeldSlots],
        log_folder: Path,
    ) -> None:
        """`starts` and `slots`: of the `members`."""
        super().__init__(blueprint, _PACE)
        self.has_failed = False
        self._members = list(members)
        self._starts = list(starts)
        self._slots = list(slots)
        self._log_folder = log_folder
        can_restart = blueprint.failure.max_restarts > 0
        self._spares = Spares(blueprint, blueprint.runner.spares if can_restart else 0)
        self._spares_due_s: float | None = None
        self._watch = self._new_watch()
        # Python waits for processes when it ends, and they for the driver.
        atexit.register(self.close)

    @classmethod
    def start(
        cls,
        blueprint: Blueprint,
        log_folder: Path,
        say: Callable[[str], None],
        launch: Launch = spawn,
        host: str = HOST,
        make: Make = RankProcess,
    ) -> Self:
        """Start the processes, let them join each other and build.

        Args:
            host: address of this host at which the ranks find each other.
            make: what ranks are; another than `RankProcess` only to test the driver.

        Raises:
            UserError: a rank found a mistake.
            RankFailedError: a rank failed.
        """
        slots = [HeldSlots.make() for _ in range(blueprint.topology.num_ranks)]
        starts = list(_starts(blueprint, log_folder, host, make, slots))
        log_folder.mkdir(parents=True, exist_ok=True)
        crew = cls(blueprint, starts, launch(starts), slots, log_folder)
        try:
            say(f"{len(starts)} ranks are importing torch and DeepSpeed")
            crew.join()
            say("building models and engines on the ranks")
            crew.build(blueprint)
        except BaseException:
            crew.close()
            raise
        return crew

    def submit(
        self,
        method: Callable[Concatenate[ProcessApi, P], A],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> Pending[A]:
        """See `Crew`."""
        assert not keywords, "calls by name pass arguments by place"
        name = name_of(method)
        lines = [m.watch if name in MEANWHILE else m.commands for m in self._members]
        return Pending([_Question(line, line.ask(name, arguments)) for line in lines])

    def collect(self, pending: Pending[A]) -> list[A]:
        """See `Crew`."""
        while not self.is_done(pending):
            # A rank may wait in this question for one that has failed in another.
            if self._watch.finding is not None or any(m.end is not None for m in self._members):
                raise self._failure()
            wait([q.line.connection for q in self._open(pending)], timeout=_LOOK_S)
        if any(line.failed is not None for line, _ in pending.handles):
            raise self._failure()
        return [line.take(number).value for line, number in pending.handles]

    def is_done(self, pending: Pending[Any]) -> bool:
        """See `Crew`."""
        return not list(self._open(pending))

    def forget(self, pending: Pending[Any]) -> None:
        """See `Crew`."""
        for line, number in pending.handles:
            line.forget(number)

    def supply(self, runner: RunnerSpec) -> Supply:
        """The devices and cores of this host."""
        num_cores = len(os.sched_getaffinity(0))
        gpus = _visible_gpus(runner.device)
        if gpus:
            return Supply("cuda", len(gpus), num_cores)
        return Supply("cpu", int(num_cores / runner.cpus_per_rank), num_cores)

    def notice(self) -> Draining | None:
        """See `Crew`. A run that trains for a while gets its spare processes."""
        now_s = time.monotonic()
        if self._spares_due_s is None:
            self._spares_due_s = now_s + SPARES_AFTER_S
        elif now_s > self._spares_due_s:
            self._spares.start()
        return None

    def start_spares(self, wait: bool = False) -> None:
        """See `MendedCrew`."""
        self._spares.start()
        if wait:
            self._spares.wait()

    def build(self, blueprint: Blueprint) -> None:
        """See `CrewOfProcesses`."""
        for own in self._slots:
            own.clear()
        super().build(blueprint)

    def remove(self, ranks: Collection[int]) -> None:
        """See `MendedCrew`."""
        self._watch.stop()
        for rank in ranks:
            self._members[rank].end_now()

    def replace(self, ranks: Collection[int]) -> bool:
        """See `MendedCrew`."""
        for rank in ranks:
            start = self._starts[rank]
            self._members[rank] = self._spares.take(start) or spawn([start], rank_context())[0]
        self._spares_due_s = None
        return True

    def let_go(self, ranks: Collection[int], stages: tuple[str, ...]) -> None:
        """See `MendedCrew`."""
        for rank in ranks:
            line = self._members[rank].watch
            line.forget(line.ask(name_of(ProcessApi.let_go), (stages,)))

    def busy(self) -> set[int]:
        """See `MendedCrew`."""
        for member in self._members:
            member.commands.read()
        lines = [member.commands for member in self._members]
        return {rank for rank, line in enumerate(lines) if line.is_closed or not line.is_idle}

    def start_over(self) -> None:
        """See `MendedCrew`."""
        for member in self._members:
            for line in (member.commands, member.watch):
                line.forget_all()
        self._watch = self._new_watch()

    def last_cut(self) -> Kept | None:
        """See `MendedCrew`."""
        found = newest_common([own.cuts() for own in self._slots])
        return None if found is None else (found[0], {self._starts[0].host: found[1]})

    def close(self) -> None:
        """End the processes."""
        atexit.unregister(self.close)
        self._watch.stop()
        for member in self._members:
            member.hang_up()
        self._spares.close()
        given_up_s = time.monotonic() + _END_PATIENCE_S
        for process in (m.process for m in self._members if m.process is not None):
            process.join(max(0.0, given_up_s - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        for rank in range(len(self._members)):
            note_file(log_file(self._log_folder, rank)).unlink(missing_ok=True)
        for own in self._slots:
            own.close()
        self._members, self._slots = [], []

    def _new_watch(self) -> ProcessWatch:
        lines = [member.watch for member in self._members]
        return ProcessWatch(lines, self.blueprint.failure.hang_timeout_s)

    def _open(self, pending: Pending[Any]) -> Iterator[_Question]:
        """Questions that are not answered."""
        for question in pending.handles:
            question.line.read()
            if not question.line.has(question.number):
                yield question

    def _failure(self) -> Exception:
        """The error that the user should see, once something has failed."""
        self.has_failed = True
        noticed_s = now_s()
        cause = self._find_cause()
        for member in self._members:
            member.commands.forget_all()  # they are told of once
        if cause.kind is Kind.TOLD:
            assert cause.end is not None
            assert cause.end.error is not None
            return cause.end.error
        rank, status = cause.ranks[0], self._watch.statuses.get(cause.ranks[0])
        path, process = log_file(self._log_folder, rank), self._members[rank].process
        pid = process.pid if process is not None else status.pid if status is not None else None
        facts = None if pid is None else look_at(pid, path)
        hangs = cause.finding is not None and cause.finding.kind == "hang"
        stacks = self._stacks(self._members[rank].watch) if hangs else ""
        scene = Scene(HOST, path, self._watch.statuses, self._watch.silent_s(rank), facts, stacks)
        message = tell(cause, self.topology, scene)
        return RankFailedError(message, noticed_s, ranks=frozenset(cause.ranks))

    def _find_cause(self) -> Cause:
        """Wait for a moment, so that the rank to blame is found and not one that lost it."""
        given_up_s = time.monotonic() + _CAUSE_TIMEOUT_S
        while True:
            found = {rank: member.end for rank, member in enumerate(self._members)}
            ends = {rank: end for rank, end in found.items() if end is not None}
            cause = find_cause(ends, self._watch.finding)
            if cause is not None and (cause.is_certain or time.monotonic() > given_up_s):
                return cause
            time.sleep(_LOOK_S)

    def _stacks(self, line: Line) -> str:
        """Where the threads of a rank that hangs are."""
        number = line.ask(name_of(ProcessApi.stacks), ())
        given_up_s = time.monotonic() + _ANSWER_TIMEOUT_S
        while time.monotonic() < given_up_s:
            line.read()
            if line.has(number):
                return str(line.take(number).value)
            time.sleep(0.05)
        return ""


def _starts(
    blueprint: Blueprint,
    log_folder: Path,
    host: str,
    make: Make,
    slots: Sequence[HeldSlots],
) -> Iterator[Start]:
    topology = blueprint.topology
    shared = max(1, len(os.sched_getaffinity(0)) // topology.num_ranks)
    gpus = _visible_gpus(blueprint.runner.device)
    for rank in range(topology.num_ranks):
        threads = blueprint.stages[topology.place(rank)[0]].threads or shared
        gpu = gpus[rank] if gpus else None
        log, paths = log_file(log_folder, rank), slots[rank].paths
        yield Start(blueprint, rank, threads, log, host, gpu, make, paths)


def _visible_gpus(device: str) -> list[str]:
    """The GPUs of this host that this process may use, as CUDA names them; none on CPUs."""
    if device == "cpu":
        return []
    import torch

    return [gpu_name(number) for number in range(torch.cuda.device_count())]


def gpu_name(number: int) -> str:
    """What CUDA calls one of the GPUs that this process may use."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[number] if number < len(named) else str(number)
