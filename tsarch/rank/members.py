"""The processes of ranks on this host, as the driver has them, and spare ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

from tsarch.blueprint import Blueprint
from tsarch.rank.diagnosis import End, Kind
from tsarch.rank.lines import Line
from tsarch.rank.preloaded import rank_context
from tsarch.rank.serving import READY, Start, serve, serve_spare

_END_PATIENCE_S = 2.0
_READY_PATIENCE_S = 60.0
_SPAWN = get_context("spawn")


@dataclass(frozen=True)
class Member:
    """The process of a rank, as the driver has it."""

    commands: Line
    watch: Line
    process: BaseProcess | None
    """None: another process started it, and will see to its end."""

    @property
    def end(self) -> End | None:
        """How it has ended, or what it was told has failed; None: neither."""
        for line in (self.commands, self.watch):
            line.read()
            if line.failed is not None:
                return line.failed
        code = None if self.process is None else self.process.exitcode
        if code is not None:
            return End(Kind.GONE, exit_code=code)
        if not self.commands.is_closed:
            return None
        if self.process is not None:  # on its way: in a moment it has an exit code
            self.process.join(_END_PATIENCE_S)
            code = self.process.exitcode
        return End(Kind.GONE, exit_code=code)

    def hang_up(self) -> None:
        """Let it end."""
        self.commands.hang_up()
        self.watch.hang_up()

    def end_now(self) -> None:
        """End it, whatever state it is in."""
        self.hang_up()
        if self.process is not None:
            self.process.kill()
            self.process.join()


Launch = Callable[[Sequence[Start]], Sequence[Member]]
"""Starts the processes of all ranks, or finds them."""


def spawn(
    starts: Sequence[Start], context: SpawnContext | ForkServerContext | None = None
) -> list[Member]:
    """New processes of this one; `context`: where they come from."""
    context = context or _SPAWN
    members = []
    for start in starts:
        process, commands, watch = _launch(serve, start, f"rank {start.rank}", context)
        members.append(Member(Line(commands), Line(watch), process))
    return members


class Spares:
    """Processes that have imported what ranks need and read the data, to take a rank's place."""

    def __init__(self, blueprint: Blueprint, number: int) -> None:
        self._blueprint = blueprint
        self._number = number
        self._waiting: list[tuple[BaseProcess, Connection, Connection]] = []

    def start(self) -> None:
        """Start those that are missing; they need some seconds."""
        while len(self._waiting) < self._number:
            self._waiting.append(_launch(serve_spare, self._blueprint, "spare", rank_context()))

    def wait(self) -> None:
        """Wait until they could begin, or have ended."""
        for _, commands, _ in self._waiting:
            commands.poll(_READY_PATIENCE_S)

    def take(self, start: Start) -> Member | None:
        """One, as the rank of `start`; None: there is none left."""
        while self._waiting:
            process, commands, watch = self._waiting.pop(0)
            try:
                if commands.poll(_READY_PATIENCE_S) and commands.recv() == READY:
                    commands.send(start)
                    return Member(Line(commands), Line(watch), process)
            except (EOFError, OSError):
                pass  # it has ended
            Member(Line(commands), Line(watch), process).end_now()
        return None

    def close(self) -> None:
        """End those that wait."""
        while self._waiting:
            process, commands, watch = self._waiting.pop()
            Member(Line(commands), Line(watch), process).end_now()


def _launch(
    target: Callable[..., None], what: object, name: str, context: SpawnContext | ForkServerContext
) -> tuple[BaseProcess, Connection, Connection]:
    """A new process that runs `target(what, commands, watch)`, and this side of its connections."""
    commands, their_commands = context.Pipe()
    watch, their_watch = context.Pipe()
    theirs = (their_commands, their_watch)
    process = context.Process(target=target, args=(what, *theirs), name=name)
    process.start()
    for connection in theirs:
        connection.close()
    return process, commands, watch
