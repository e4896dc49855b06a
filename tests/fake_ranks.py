"""Ranks without torch, groups or models, for tests of the driver: they start in a moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from tsarch.blueprint import Blueprint
from tsarch.checkpoint.cut import Cut, Resume, Stall, Written
from tsarch.rank.activity import Activity
from tsarch.rank.process import Answering, write_output_to
from tsarch.rank.status import note_file, started_line
from tsarch.rank.tick_reports import TickReports
from tsarch.records import TickReport


class FakeRank(Answering):
    """Answers as a rank would; `load` tells it what to do amid the next ticks."""

    def __init__(
        self,
        blueprint: Blueprint,
        rank: int,
        threads: int,
        log_file: Path,
        host: str,
        slots: tuple[str, ...] = (),
    ) -> None:
        write_output_to(log_file)
        print(started_line(rank), flush=True)
        super().__init__(Activity(note_file(log_file)))
        self._rank = rank
        self._stage, self._replica = blueprint.topology.place(rank)
        self._tick = 0
        self._fault: tuple[int, str] | None = None
        self._let_go = threading.Event()
        self.left: tuple[str, ...] | None = None
        """Stages whose worlds were left with the rest; None: nothing was."""

    def offer_addresses(self, stages: tuple[str, ...]) -> dict[str, tuple[str, int]]:
        return {}

    def let_go(self, stages: tuple[str, ...]) -> None:
        self._let_go.set()

    def leave(self, stages: tuple[str, ...]) -> bool:
        self.left, self._fault = stages, None
        return True

    def take_checkpoint(self, cut: Cut) -> Stall:
        return Stall(0.0, 0)

    def checkpoint_so_far(self) -> Written | None:
        return None

    def checkpoint_written(self) -> Written:
        return Written()

    def join(self, meeting: Any) -> None: ...

    def build(self, blueprint: Blueprint) -> None: ...

    def begin(self, start: int, stop: int, resume: Resume | None) -> int:
        self._tick = start
        return stop - start

    def load(self, folder: Path) -> None:
        """`folder` is a rank and what happens to it, such as 1/killed."""
        rank, fault = folder.parts
        if int(rank) == self._rank:
            self._fault = (3, fault)

    def advance(self, num_ticks: int) -> TickReports:
        reports = TickReports()
        for _ in range(num_ticks):
            if self._fault is not None and self._tick == self._fault[0]:
                self._happens(self._fault[1])
            reports.append(TickReport(self._stage.name, self._replica, self._tick, self._tick))
            self._tick += 1
        return reports

    def stats(self) -> Any:
        return os.getpid()

    def survey(self, split: str, windows: Any = None) -> Any:
        return self.left

    def _happens(self, fault: str) -> None:
        print(f"about to be {fault}", flush=True)
        match fault:
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "frozen":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "ended":
                os._exit(7)
            case "broken":
                raise UnportableError("no more", 3)
            case "waiting":
                self._let_go.wait(600)
                raise RuntimeError("Connection closed by peer")
            case "stuck":
                time.sleep(600)


class UnportableError(RuntimeError):
    """It can be pickled, but not unpickled."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(what)
