"""A way through ssh to the dashboard of a cluster that `ray up` has made."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tsarch.errors import UserError

_RAY = Path(sys.executable).with_name("ray")
_OPEN_TIMEOUT_S = 60.0
_POLL_S = 0.2
_ANEW_S = 2.0
_KEPT = 2000


@contextmanager
def tunnel(cluster: Path) -> Iterator[str]:
    """Within: the dashboard's URL on this computer. A broken way is made anew on the same port.

    Args:
        cluster: the file that was given to `ray up`.

    Raises:
        UserError: there is no way to the cluster's head.
    """
    if not cluster.is_file():
        raise UserError.single(f"--cluster {cluster}", "there is no such file.")
    port = _free_port()
    keeper = _Keeper([str(_RAY), "dashboard", str(cluster), "--port", str(port)])
    keeper.start()
    try:
        if not _opens(port, keeper):
            raise UserError.single(
                f"--cluster {cluster}",
                f"there is no way to the dashboard of its head: {keeper.last_words()}",
                f"Is it up? `ray up {cluster}` starts it.",
            )
        yield f"http://127.0.0.1:{port}"
    finally:
        keeper.end()


class _Keeper(threading.Thread):
    """Runs a command again and again until `end`."""

    def __init__(self, command: list[str]) -> None:
        super().__init__(daemon=True)
        self._command, self._output = command, ""
        self._ended = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self.num_runs = 0
        """How often the command has ended by itself."""

    def run(self) -> None:
        """See `threading.Thread`."""
        while not self._ended.is_set():
            # A session of its own, so that Ctrl-C doesn't end it, and `end` ends all of it.
            with subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            ) as self._process:
                if self._ended.is_set():
                    self._kill()
                assert self._process.stdout is not None
                for line in self._process.stdout:
                    self._output = (self._output + line)[-_KEPT:]
            self.num_runs += 1
            self._ended.wait(_ANEW_S)

    def last_words(self) -> str:
        """The last line of what the command said."""
        lines = [line for line in self._output.splitlines() if line.strip()]
        return lines[-1].strip() if lines else "`ray dashboard` says nothing"

    def end(self) -> None:
        """End the command, and don't start it again."""
        self._ended.set()
        self._kill()
        self.join()

    def _kill(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


def _opens(port: int, keeper: _Keeper) -> bool:
    """Whether something listens at the port in time, and before the command has failed twice."""
    deadline_s = time.monotonic() + _OPEN_TIMEOUT_S
    while time.monotonic() < deadline_s and keeper.num_runs < 2:
        with socket.socket() as own:
            if own.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(_POLL_S)
    return False


def _free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])
