"""A thread of the driver's that knocks at the cluster's head. Ranks train on without it, but
nothing can be started or ended through Ray, and after a minute Ray ends its processes itself."""

from __future__ import annotations

import threading
import time

from tsarch.cluster.knocking import Door, knock

_EVERY_S = 0.5
_STOP_TIMEOUT_S = 2.0


class HeadWatch:
    """Watches until `stop`."""

    def __init__(self, address: str, silence_s: float) -> None:
        """`address`: HOST:PORT of the head's GCS. `silence_s`: see `Door`."""
        host, _, port = address.rpartition(":")
        self.address = address
        self._place = host.strip("[]"), int(port)
        self._door = Door(silence_s)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="head watch", daemon=True)
        self._thread.start()

    @property
    def answers(self) -> bool:
        """Whether it took the last connection."""
        return self._door.answers

    @property
    def lost_for_s(self) -> float:
        """Seconds that it has taken no connection, once it is sure that it is lost; else 0."""
        now_s = time.monotonic()
        return self._door.in_vain_s(now_s) if self._door.is_lost(now_s) else 0.0

    def stop(self) -> None:
        """Knock no more."""
        self._ended.set()
        self._thread.join(timeout=_STOP_TIMEOUT_S)

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            knocked_s = time.monotonic()
            self._door.note(knock(*self._place), knocked_s)
