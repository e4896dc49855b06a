"""The process of one rank, whoever started it: it does what a driver asks, by name, and answers
meanwhile what it is doing. Torch, DeepSpeed and the models live here, never in the driver."""

from __future__ import annotations

import faulthandler
import gc
import math
import os
import sys
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsarch.blueprint import Blueprint
from tsarch.host_memory import collect_seldom, keep_freed_memory
from tsarch.launchers import forget_launchers
from tsarch.rank.activity import Activity
from tsarch.rank.api import MEANWHILE, Meeting
from tsarch.rank.log_times import LogTimes
from tsarch.rank.numa import bind_to_gpu
from tsarch.rank.pacer import keeps_cuts
from tsarch.rank.spare_time import in_spare_time
from tsarch.rank.status import Status, note_file, own_status, started_line

if TYPE_CHECKING:
    from tsarch.checkpoint.cut import Resume
    from tsarch.checkpoint.host_copies import HostCopies
    from tsarch.parallel.groups import MeetingPoint
    from tsarch.prepare import Prepared
    from tsarch.rank.assembly import Groups
    from tsarch.rank.building import Parts
    from tsarch.rank.rank import Rank

_ORPHAN_S = 60.0
"""A rank that its driver hasn't asked for so long, and the time for hangs, ends by itself."""


class HasFailedError(ConnectionError):
    """What a rank answers that has failed in what came before: a consequence, no cause."""

    def __init__(
        self, message: str = "closed by peer: this rank has failed in what came before"
    ) -> None:
        super().__init__(message)  # with its arguments it crosses processes


class Answering:
    """Does what it is asked by name, one thing after the other, but for what is asked
    `MEANWHILE`."""

    def __init__(self, activity: Activity) -> None:
        self.activity = activity
        self.asked_s = time.monotonic()
        """When the driver asked last how this rank is."""

    def do(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """A method of `ProcessApi`; `status` tells of it while it lasts."""
        method = getattr(self.target(name), name)
        if name in MEANWHILE:
            return method(*arguments)
        with self.activity.during(name):
            return method(*arguments)

    def target(self, name: str) -> Any:
        """Whose method is called."""
        return self

    def status(self) -> Status:
        """See `ProcessApi`."""
        self.asked_s = time.monotonic()
        return own_status(self.activity)

    def stacks(self) -> str:
        """See `ProcessApi`."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        return "\n".join(
            f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
            for ident, frame in sys._current_frames().items()
            if ident != threading.get_ident()
        )


class RankProcess(Answering):
    """One rank: one device, one stage."""

    def __init__(
        self,
        blueprint: Blueprint,
        rank: int,
        threads: int,
        log_file: Path,
        host: str,
        slots: tuple[str, ...] = (),
    ) -> None:
        """`host`: address of this host that the other ranks reach. `slots`: where this rank keeps
        cuts in memory; none: where nobody else sees them."""
        write_output_to(log_file)
        prepare_environment()
        bind_to_gpu()  # before any thread starts, as threads inherit it
        os.environ["OMP_NUM_THREADS"] = str(threads)
        super().__init__(Activity(note_file(log_file)))
        patience_s = blueprint.failure.hang_timeout_s + _ORPHAN_S
        threading.Thread(target=self._end_alone, args=(patience_s,), daemon=True).start()
        self._blueprint = blueprint
        self._threads = threads
        self._rank_number = rank
        self._host = host
        print(started_line(rank), flush=True)
        self._log_times = LogTimes(log_file)
        self._slots = slots
        self._meeting_points: dict[str, MeetingPoint] = {}
        self._groups: Groups | None = None
        self._copies: HostCopies | None = None
        self._rank: Rank | None = None
        self._kept: Parts | None = None
        self.prepared: Prepared | None = None
        """Data that has been read already."""
        self._failed = False
        self._engine_is_spoiled = False

    def do(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """See `Answering`. After a failure nothing is done until the groups are left: what was
        asked meanwhile would only find what the failure has left."""
        if name in MEANWHILE or name == "leave":
            return super().do(name, arguments)
        if self._failed:
            raise HasFailedError
        try:
            return super().do(name, arguments)
        except Exception as error:
            if not self._goes_on(error):
                self._failed = True
                self._engine_is_spoiled |= name == "advance" or self._is_sharded
            raise

    def _goes_on(self, error: Exception) -> bool:
        """Whether an error only tells that other ranks are gone, and left the engine between two
        steps."""
        return self._rank is not None and error is self._rank.lost

    def target(self, name: str) -> Any:
        """This process, or the rank in it."""
        return self if hasattr(self, name) else self.rank

    def warm_up(self) -> None:
        """See `ProcessApi`."""
        self.asked_s = math.inf  # nobody asks how a spare is
        self.prepared = self.prepared or warm_up(self._blueprint)

    def become(self, rank: int, threads: int, log_file: str) -> None:
        """See `ProcessApi`."""
        self.asked_s, log = time.monotonic(), Path(log_file)
        write_output_to(log)
        print(started_line(rank), flush=True)
        self._log_times.end()
        self._log_times = LogTimes(log)
        self.activity = Activity(note_file(log))
        self._rank_number, self._threads = rank, threads

    def keep_in(self, slots: tuple[str, ...]) -> None:
        """See `ProcessApi`."""
        self._slots = slots

    def offer_addresses(self, stages: tuple[str, ...]) -> dict[str, tuple[str, int]]:
        """See `ProcessApi`."""
        from tsarch.rank.assembly import addresses_of, meeting_points

        topology = self._blueprint.topology
        points = meeting_points(topology, self._rank_number, self._host, stages)
        self._meeting_points |= points
        return addresses_of(points)

    def join(self, meeting: Meeting) -> None:
        """See `ProcessApi`."""
        import torch

        from tsarch.parallel.groups import choose_device
        from tsarch.rank.assembly import Groups

        keep_freed_memory()
        torch.set_num_threads(self._threads)
        if self._groups is None:
            self._groups = Groups(choose_device(self._blueprint.runner.device))
        self._groups.join(self._blueprint, self._rank_number, self._host, meeting)

    def build(self, blueprint: Blueprint) -> None:
        """See `ProcessApi`."""
        from tsarch.checkpoint.host_copies import HostCopies
        from tsarch.rank.assembly import Belongings, assemble

        assert self._groups is not None, "join comes first"
        self._rank = None  # its memory is needed
        if self._copies is None:
            self._copies = HostCopies(self._slots, 2 if keeps_cuts(blueprint) else 1)
        own = Belongings(self.activity, self._copies, self.prepared, self._kept)
        self._rank = assemble(blueprint, self._rank_number, self._groups, own)
        self.prepared = self._kept = None

    def begin(self, start: int, stop: int, resume: Resume | None) -> int:
        """See `RankApi`."""
        if resume is not None:
            resume = replace(resume, cut=resume.cut.on(self._host))
        return self.rank.begin(start, stop, resume)

    def let_go(self, stages: tuple[str, ...]) -> None:
        """See `ProcessApi`."""
        if self._groups is not None:
            self._groups.cut(self._stage in stages)

    def end(self) -> None:
        """See `ProcessApi`."""
        print("ended by the driver", flush=True)
        threading.Timer(0.2, os._exit, (0,)).start()

    def leave(self, stages: tuple[str, ...]) -> bool:
        """See `ProcessApi`."""
        if self._groups is None:
            return True
        if self._rank is not None:
            self._rank.training.give_up_writing()
            self._rank.training.profiled()  # torch has one profiler a process
            self.prepared, self._kept = self._rank.prepared, self._rank.parts
            self._rank = None
        goes_anew = self._stage in stages
        if goes_anew or self._engine_is_spoiled:
            self._kept = None
        if goes_anew:
            gc.collect()  # engines hold themselves
        self._groups.leave(goes_anew)
        if goes_anew or self._kept is not None:
            self._failed = self._engine_is_spoiled = False
            return True
        return False

    @property
    def _is_sharded(self) -> bool:
        """Whether weights are put together for each pass, which a failure may leave half done."""
        stage = self._blueprint.topology.place(self._rank_number)[0]
        return self._blueprint.stages[stage].engine.zero_stage == 3

    @property
    def _stage(self) -> str:
        return self._blueprint.topology.place(self._rank_number)[0].value

    @property
    def rank(self) -> Rank:
        """The rank that `build` made."""
        assert self._rank is not None, "build comes first"
        return self._rank

    def _end_alone(self, patience_s: float) -> None:
        """End this process when its driver is lost. Whoever started it does so too, but not on a
        node that is cut off, or later."""
        while time.monotonic() - self.asked_s < patience_s:
            time.sleep(1.0)
        print(f"the driver hasn't asked for {patience_s:.0f} s: this rank ends", flush=True)
        os._exit(1)


def warm_up(blueprint: Blueprint) -> Prepared:
    """Import all that a rank of this run imports, and read its data, while ranks train."""
    return in_spare_time(lambda: _warm_up(blueprint))


def _warm_up(blueprint: Blueprint) -> Prepared:
    prepare_environment()
    # To ask CUDA itself would settle which GPUs this process sees.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    from tsarch.parallel.groups import choose_device
    from tsarch.prepare import prepare_data
    from tsarch.rank import assembly  # noqa: F401
    from tsarch.stage.build import outline_model
    from tsarch.stage.deepspeed_engine import import_deepspeed
    from tsarch.tasks.base import num_outputs
    from tsarch.tasks.registry import make_task

    import_deepspeed(choose_device(blueprint.runner.device))
    prepared = prepare_data(blueprint)
    task = make_task(blueprint.task.name, prepared.labels, blueprint.task)
    outputs = num_outputs(task, len(prepared.labels))
    for stage in blueprint.stages:  # imports what the architecture needs
        outline_model(blueprint, stage, outputs[stage.reads])
    return prepared


def prepare_environment() -> None:
    """Keep libraries from doing what a rank doesn't want; before their import."""
    collect_seldom()
    forget_launchers()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def write_output_to(log_file: Path) -> None:
    """Send this process's stdout and stderr to a file of the run's, C libraries' included."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    faulthandler.enable()  # a crash in native code leaves its stack there
