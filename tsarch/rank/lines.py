"""What a driver asks a process over a connection, and the answers, which come in that order."""

from __future__ import annotations

import threading
from multiprocessing.connection import Connection
from typing import Any

from tsarch.rank.diagnosis import End
from tsarch.rank.serving import Answer


class Line:
    """One connection. Several threads may use it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.is_closed = False
        """Whether the process has ended, or this side has hung up."""
        self._lock = threading.Lock()
        self._num_asked = 0
        self._num_answered = 0
        self._answers: dict[int, Answer] = {}
        self._unwanted: set[int] = set()

    def ask(self, name: str, arguments: tuple[Any, ...]) -> int:
        """Ask without waiting; the number of the question."""
        with self._lock:
            number, self._num_asked = self._num_asked, self._num_asked + 1
            try:
                self.connection.send((name, arguments))
            except OSError:
                self.is_closed = True
            return number

    def read(self) -> None:
        """Take in what has come; never waits."""
        with self._lock:
            try:
                while not self.is_closed and self.connection.poll():
                    answer = self.connection.recv()
                    if self._num_answered not in self._unwanted:
                        self._answers[self._num_answered] = answer
                    self._num_answered += 1
            except (EOFError, OSError):
                self.is_closed = True

    def has(self, number: int) -> bool:
        """Whether a question is answered."""
        return number in self._answers

    def take(self, number: int) -> Answer:
        """The answer; it is given once."""
        with self._lock:
            return self._answers.pop(number)

    def forget(self, number: int) -> None:
        """Nobody wants this answer."""
        with self._lock:
            self._unwanted.add(number)
            self._answers.pop(number, None)

    def forget_all(self) -> None:
        """Nobody wants any answer to what has been asked."""
        with self._lock:
            self._unwanted.update(range(self._num_answered, self._num_asked))
            self._answers.clear()

    @property
    def is_idle(self) -> bool:
        """Whether all questions are answered."""
        return self._num_answered == self._num_asked

    @property
    def failed(self) -> End | None:
        """How a question has failed whose answer nobody has taken, the first that has."""
        ends = (answer.end for _, answer in sorted(self._answers.copy().items()))
        return next((end for end in ends if end is not None), None)

    def hang_up(self) -> None:
        """Let the process end."""
        with self._lock:
            self.is_closed = True
            self.connection.close()
