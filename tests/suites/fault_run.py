"""`tsarch` with faults: ranks that die, freeze or fail at a given instruction, once each.

python -m tests.suites.fault_run '[{"kind": "kill", "rank": 1, "step": 5}]' train CONFIG …
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from tsarch.blueprint import Blueprint
from tsarch.cluster.ray_crew import RayCrew
from tsarch.cluster.worker import Worker
from tsarch.launch.cli import main
from tsarch.rank.activity import Activity
from tsarch.rank.process import RankProcess
from tsarch.rank.process_crew import ProcessCrew
from tsarch.rank.status import note_file
from tsarch.schedule.instruction import Forward, Instruction

FaultKind = Literal["kill", "freeze", "raise", "stall", "segfault"]


class InjectedError(RuntimeError):
    """What a rank raises that is to fail with an exception."""


class Fault(BaseModel):
    """Something that happens to a rank as it begins an instruction."""

    kind: FaultKind
    """`stall`: the rank stops making progress, but its process still answers."""
    rank: int
    step: int
    """The first step of which it may happen."""
    instruction: str | None = None
    """Name of the instruction. Default: the first that comes."""
    marker: Path
    """A file that is made when it happens, so that it happens once; its time is the fault's."""

    def strikes(self, instruction: Instruction) -> bool:
        """Whether it happens now: in training, whose steps these are, not in an evaluation's."""
        if isinstance(instruction, Forward) and not instruction.update:
            return False
        if self.instruction not in (None, type(instruction).__name__) or self.marker.exists():
            return False
        return _step(instruction) >= self.step

    def strike(self) -> None:
        """Let it happen."""
        self.marker.write_text(f"{os.getpid()}\n", encoding="ascii")
        match self.kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(3600)  # another thread may take the signal, and this one go on meanwhile
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "raise":
                raise InjectedError("injected")
            case "stall":
                time.sleep(3600)


class FaultyActivity(Activity):
    """Lets faults happen where instructions begin."""

    def __init__(self, note: Path, faults: list[Fault]) -> None:
        super().__init__(note)
        self._faults = faults

    def begin(self, instruction: Instruction) -> None:
        """The next instruction, or a fault at it."""
        super().begin(instruction)
        for fault in self._faults:
            if fault.strikes(instruction):
                fault.strike()


def faulty_worker(faults: list[Fault]) -> type[Worker]:
    """The class of actors that have some of the faults."""

    class FaultyWorker(Worker):
        def __init__(self, blueprint: Blueprint, rank: int, threads: int, log_file: str) -> None:
            super().__init__(blueprint, rank, threads, log_file)
            self._spoil(rank, log_file)

        def become(self, rank: int, threads: int, log_file: str) -> None:
            super().become(rank, threads, log_file)
            self._spoil(rank, log_file)

        def _spoil(self, rank: int, log_file: str) -> None:
            own = [fault for fault in faults if fault.rank == rank]
            self.activity = FaultyActivity(note_file(Path(log_file)), own)

    return FaultyWorker


class FaultyProcess(RankProcess):
    """A plain process that has some of the faults."""

    def __init__(
        self,
        faults: list[Fault],
        blueprint: Blueprint,
        rank: int,
        threads: int,
        log: Path,
        host: str,
        slots: tuple[str, ...] = (),
    ) -> None:
        super().__init__(blueprint, rank, threads, log, host, slots)
        own = [fault for fault in faults if fault.rank == rank]
        self.activity = FaultyActivity(note_file(log), own)


def _step(instruction: Instruction) -> int:
    """Step of an instruction; of an exchange, the one whose rows it carries."""
    numbers: tuple[Any, ...] = (
        getattr(instruction, "step", None),
        getattr(instruction, "exchange", None),
    )
    return next((int(number) for number in numbers if number is not None), -1)


def run(faults: list[Fault], arguments: list[str]) -> None:
    """`tsarch` with `arguments`, on ranks with `faults`. Spares are ready from the beginning, as
    they are in a run that has trained for a while."""
    worker = faulty_worker(faults)
    start = RayCrew.start.__func__  # type: ignore[attr-defined]

    def start_faulty(cls: type[RayCrew], *args: Any, **kwargs: Any) -> RayCrew:
        crew: RayCrew = start(cls, *args, worker=worker, **kwargs)
        crew.start_spares(wait=True)
        return crew

    RayCrew.start = classmethod(start_faulty)  # type: ignore[assignment,method-assign]
    start_processes = ProcessCrew.start.__func__  # type: ignore[attr-defined]

    def start_faulty_ones(cls: type[ProcessCrew], *args: Any, **kwargs: Any) -> ProcessCrew:
        make = partial(FaultyProcess, faults)
        crew: ProcessCrew = start_processes(cls, *args, make=make, **kwargs)
        crew.start_spares(wait=True)
        return crew

    ProcessCrew.start = classmethod(start_faulty_ones)  # type: ignore[assignment,method-assign]
    main(arguments)


if __name__ == "__main__":
    run(TypeAdapter(list[Fault]).validate_json(sys.argv[1]), sys.argv[2:])
