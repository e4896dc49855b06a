"""Whether anybody still listens at a place, told so that a busy host can't be mistaken for a lost
one.

It is the kernel of a host that takes connections for a process that listens (and queues some
thousands of them for one that is busy or stopped), and that refuses them once the process has
ended. So a refusal doesn't come from load, and two in a row are believed at once. Silence may: a
kernel may be late, a network away, a virtual machine on the move. It is believed after a time that
those don't take.
"""

from __future__ import annotations

import socket
import time
from enum import Enum

_TIMEOUT_S = 1.0
_REFUSALS = 2
_LEAST_KNOCKS = 5
"""So many in vain before silence is believed, should whoever knocks have been stopped for long."""
_PAUSE_S = 0.2


class Answer(Enum):
    """What became of a connection."""

    TAKEN = "taken"
    REFUSED = "refused"
    """There is a host, but nobody listens."""
    SILENCE = "silence"
    """No answer in time, or no way there."""


def knock(address: str, port: int, timeout_s: float = _TIMEOUT_S) -> Answer:
    """Try to connect."""
    try:
        with socket.create_connection((address, port), timeout=timeout_s):
            return Answer.TAKEN
    except (ConnectionRefusedError, ConnectionResetError):
        return Answer.REFUSED
    except OSError:
        return Answer.SILENCE


class Door:
    """What the knocks at one place have come to."""

    def __init__(self, silence_s: float) -> None:
        """`silence_s`: silence of so many seconds means that nobody is there any more."""
        self._silence_s = silence_s
        self._refusals = 0
        self._in_vain = 0
        self._since_s: float | None = None

    def note(self, answer: Answer, knocked_s: float) -> None:
        """`knocked_s`: when (of `time.monotonic`) that knock began."""
        if answer is Answer.TAKEN:
            self._refusals, self._in_vain, self._since_s = 0, 0, None
            return
        self._refusals = self._refusals + 1 if answer is Answer.REFUSED else 0
        self._in_vain += 1
        if self._since_s is None:
            self._since_s = knocked_s

    @property
    def answers(self) -> bool:
        """Whether the last knock was not in vain."""
        return self._since_s is None

    def in_vain_s(self, now_s: float) -> float:
        """Seconds since the first of the last knocks that were all in vain."""
        return 0.0 if self._since_s is None else now_s - self._since_s

    def is_lost(self, now_s: float) -> bool:
        """Whether nobody is there any more."""
        silent = self._in_vain >= _LEAST_KNOCKS and self.in_vain_s(now_s) >= self._silence_s
        return silent or self._refusals >= _REFUSALS


def is_gone(address: str, port: int, silence_s: float) -> bool:
    """Whether nobody listens any more: knocks until there is an answer, or long enough none."""
    door = Door(silence_s)
    while True:
        knocked_s = time.monotonic()
        door.note(knock(address, port), knocked_s)
        if door.answers or door.is_lost(time.monotonic()):
            return not door.answers
        time.sleep(_PAUSE_S)
