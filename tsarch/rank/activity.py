"""What a process is doing at this moment, for a thread that asks meanwhile, and for those who find
the process dead."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tsarch.schedule.instruction import FinishTiedExchange, Instruction, RecvGrad, RecvHidden

IDLE = "waiting for the driver"


_NOTE_BYTES = 256


class Activity:
    """Written by the thread that works. Every change is one assignment, so that readers need no
    lock."""

    def __init__(self, note: Path | None = None) -> None:
        """`note`: a file that always tells the same, and outlives the process (`read_note`)."""
        self._note: mmap.mmap | None = None
        if note is not None:
            note.write_bytes(bytes(_NOTE_BYTES))
            with note.open("r+b") as file:
                self._note = mmap.mmap(file.fileno(), _NOTE_BYTES)
        self.command = "starting"
        """What the driver has asked for, or `IDLE`."""
        self.since_s = time.monotonic()
        """When the last command or instruction began."""
        self._instruction: Instruction | None = None

    @contextmanager
    def during(self, command: str) -> Iterator[None]:
        """A command of the driver's."""
        self._enter(command)
        yield
        self._enter(IDLE)  # a command that fails stays what was done last

    def begin(self, instruction: Instruction) -> None:
        """The next instruction of a stage."""
        self._instruction = instruction
        self._begun()

    @property
    def text(self) -> str:
        """Such as `Backward(step=3, micro_batch=0)`, or the command."""
        instruction = self._instruction
        if instruction is None:
            return self.command
        numbers = {k: v for k, v in vars(instruction).items() if type(v) is int}
        listed = ", ".join(f"{name}={number}" for name, number in numbers.items())
        return f"{type(instruction).__name__}({listed})"

    @property
    def waits(self) -> bool:
        """Whether the instruction is one that waits for other ranks."""
        return isinstance(self._instruction, RecvHidden | RecvGrad | FinishTiedExchange)

    def _enter(self, command: str) -> None:
        self._instruction = None
        self.command = command
        self._begun()

    def _begun(self) -> None:
        self.since_s = time.monotonic()
        if self._note is not None:
            text = self.text.encode()[:_NOTE_BYTES]
            self._note[:] = text.ljust(_NOTE_BYTES, b"\0")


def read_note(note: Path) -> str | None:
    """What a process did last; None: it left no note."""
    try:
        return note.read_bytes().rstrip(b"\0").decode(errors="replace") or None
    except OSError:
        return None
