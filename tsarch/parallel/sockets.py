"""The connections of process groups, so that a rank that waits in one for a rank that is gone, or
that waits itself, can be set free.

Gloo has nothing for that: its `abort` and `shutdown` leave whoever waits waiting. But whoever waits
at a connection that is closed gets an error at once, and so does the rank at its other end.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OPEN_FILES = Path("/proc/self/fd")


class Sockets:
    """Connections that this process has made within `watched`."""

    def __init__(self) -> None:
        self._found: dict[int, str] = {}
        self._before: dict[int, str] | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within, connections are made."""
        self._before = _open_sockets()
        try:
            yield
        finally:
            self._found |= self._new()
            self._before = None

    def cut(self) -> None:
        """Close the connections in both directions, as the death of this process would; those too
        that are being made. (Their files stay open: whose they are will close them.)"""
        for number, name in (self._found | self._new()).items():
            with suppress(OSError):
                if os.readlink(_OPEN_FILES / str(number)) == name:
                    _shut_down(number)

    def _new(self) -> dict[int, str]:
        """Those since `watched` began."""
        before = self._before
        if before is None:
            return {}
        return {n: name for n, name in _open_sockets().items() if before.get(n) != name}


def _open_sockets() -> dict[int, str]:
    """Number → name, which tells a socket from a later one of this number."""
    found = {}
    if _OPEN_FILES.is_dir():  # else not Linux
        for entry in os.listdir(_OPEN_FILES):
            with suppress(OSError):
                name = os.readlink(_OPEN_FILES / entry)
                if name.startswith("socket:"):
                    found[int(entry)] = name
    return found


def _shut_down(number: int) -> None:
    """
    Raises:
        OSError: it isn't connected.
    """
    with socket.socket(fileno=os.dup(number)) as own:
        is_network = own.family in (socket.AF_INET, socket.AF_INET6)
        # Gloo ends the process when a socket that listens fails.
        if is_network and not own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            own.shutdown(socket.SHUT_RDWR)
