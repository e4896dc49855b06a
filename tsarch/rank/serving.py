"""The process of a rank that a driver talks to over two connections: on one it is told what to do,
one thing after the other, on the other it is asked meanwhile. When the driver closes them, or
dies, the process ends. (No torch here: a process starts with it.)"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsarch.blueprint import Blueprint
from tsarch.rank.diagnosis import End, end_by
from tsarch.rank.process import Answering, HasFailedError, RankProcess, warm_up

if TYPE_CHECKING:
    from tsarch.prepare import Prepared


Make = Callable[[Blueprint, int, int, Path, str, tuple[str, ...]], Answering]
"""Of blueprint, rank, threads, log, host and slots."""


@dataclass(frozen=True)
class Start:
    """What the process of a rank needs to know first."""

    blueprint: Blueprint
    rank: int
    threads: int
    log_file: Path
    host: str
    """Address of the host that the other ranks reach."""
    gpu: str | None = None
    """The GPU that it may see; None: as the environment says."""
    make: Make = RankProcess
    """Another one than `RankProcess` only to test the driver."""
    slots: tuple[str, ...] = ()
    """Where the rank keeps cuts in memory."""


@dataclass(frozen=True)
class Answer:
    """To one question."""

    value: Any = None
    end: End | None = None
    """How it failed, if it did."""


READY = "ready"
"""What a spare says once it could begin at once."""


def serve_spare(blueprint: Blueprint, commands: Connection, watch: Connection) -> None:
    """Import what ranks need and read the data, then wait until a rank's place is free."""
    _leave_signals_to_the_driver()
    try:
        prepared = warm_up(blueprint)
        commands.send(READY)
        start = commands.recv()
    except (EOFError, OSError):  # the driver is gone
        os._exit(0)
    serve(start, commands, watch, prepared)


def serve(
    start: Start, commands: Connection, watch: Connection, prepared: Prepared | None = None
) -> None:
    """Answer until the driver is gone; never returns. `prepared`: data that was read already."""
    _leave_signals_to_the_driver()
    if start.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = start.gpu
    process = start.make(
        start.blueprint, start.rank, start.threads, start.log_file, start.host, start.slots
    )
    if isinstance(process, RankProcess):
        process.prepared = prepared
    threading.Thread(target=_answer, args=(process, watch), name="watch", daemon=True).start()
    _answer(process, commands)


def _leave_signals_to_the_driver() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they come to all at once


def _answer(process: Answering, connection: Connection) -> None:
    while True:
        try:
            name, arguments = connection.recv()
        except (EOFError, OSError):
            os._exit(0)  # the other thread may be waiting for ranks that have ended already
        answer = _do(process, name, arguments)
        try:
            connection.send(answer)
        except OSError:
            os._exit(0)


def _do(process: Answering, name: str, arguments: tuple[Any, ...]) -> Answer:
    try:
        return Answer(process.do(name, arguments))
    except Exception as error:
        if not isinstance(error, HasFailedError):
            traceback.print_exc()  # into the log
        return Answer(end=_portable(end_by(error)))


def _portable(end: End) -> End:
    """An end that can be sent: not every error of a library can."""
    try:
        ForkingPickler.loads(ForkingPickler.dumps(end))  # as a connection does it
    except Exception:
        return End(end.kind, RuntimeError(f"{type(end.error).__name__}: {end.error}"))
    return end
