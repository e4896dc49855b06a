"""The process of one rank, whoever started it: it does what a driver asks, by name, and answers
meanwhile what it is doing. Torch, DeepSpeed and the models live here, never in the driver."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsarch.blueprint import Blueprint
from tsarch.launchers import forget_launchers
from tsarch.rank.activity import Activity
from tsarch.rank.api import MEANWHILE, Meeting
from tsarch.rank.numa import bind_to_gpu
from tsarch.rank.status import Status, note_file, own_status, started_line

if TYPE_CHECKING:
    from tsarch.parallel.groups import MeetingPoint
    from tsarch.rank.assembly import Groups
    from tsarch.rank.rank import Rank

_ORPHAN_S = 60.0
"""A rank that its driver hasn't asked for so long, and the time for hangs, ends by itself."""


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
        self, blueprint: Blueprint, rank: int, threads: int, log_file: Path, host: str
    ) -> None:
        """`host`: address of this host that the other ranks reach."""
        write_output_to(log_file)
        forget_launchers()
        bind_to_gpu()  # before any thread starts, as threads inherit it
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        super().__init__(Activity(note_file(log_file)))
        patience_s = blueprint.failure.hang_timeout_s + _ORPHAN_S
        threading.Thread(target=self._end_alone, args=(patience_s,), daemon=True).start()
        self._blueprint = blueprint
        self._threads = threads
        self._rank_number = rank
        self._host = host
        print(started_line(rank), flush=True)
        self._meeting_points: dict[str, MeetingPoint] = {}
        self._groups: Groups | None = None
        self._rank: Rank | None = None

    def target(self, name: str) -> Any:
        """This process, or the rank in it."""
        return self if hasattr(self, name) else self.rank

    def offer_addresses(self) -> dict[str, tuple[str, int]]:
        """See `ProcessApi`."""
        from tsarch.rank.assembly import addresses_of, meeting_points

        topology = self._blueprint.topology
        self._meeting_points = meeting_points(topology, self._rank_number, self._host)
        return addresses_of(self._meeting_points)

    def join(self, meeting: Meeting) -> None:
        """See `ProcessApi`."""
        import torch

        from tsarch.rank.assembly import join_groups

        torch.set_num_threads(self._threads)
        self._groups = join_groups(self._blueprint, self._rank_number, self._host, meeting)

    def build(self, blueprint: Blueprint) -> None:
        """See `ProcessApi`."""
        from tsarch.rank.assembly import assemble

        assert self._groups is not None, "join comes first"
        self._rank = None  # its memory is needed
        self._rank = assemble(blueprint, self._rank_number, self._groups, self.activity)

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


def write_output_to(log_file: Path) -> None:
    """Send this process's stdout and stderr to a file of the run's, C libraries' included."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    faulthandler.enable()  # a crash in native code leaves its stack there
