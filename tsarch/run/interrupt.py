"""SIGTERM and Ctrl-C while a run trains: finish the tick, save, end. A second one ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """Notes the first signal, as long as it is entered, and puts the old handlers back for the
    second. Signals come to the main thread only; elsewhere it notes nothing."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._old: dict[signal.Signals, Any] = {}
        self.signal: signal.Signals | None = None
        """The signal that came."""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()
        self._say(f"{self.signal.name}: saving a checkpoint, then ending (again: end at once)")

    def _restore(self) -> None:
        while self._old:
            signal.signal(*self._old.popitem())
