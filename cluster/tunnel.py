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
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from tsarch.errors import UserError

_RAY = Path(sys.executable).with_name("ray")
_OPEN_TIMEOUT_S = 60.0
_POLL_S = 0.2
_ANEW_S = 2.0
_SHOWN_BYTES = 2000


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
    command = [str(_RAY), "dashboard", str(cluster), "--port", str(port)]
    with TemporaryFile() as output, closing(_Keeper(command, output)) as keeper:
        keeper.start()
        if not _opens(port, keeper):
            raise UserError.single(
                f"--cluster {cluster}",
                f"there is no way to the dashboard of its head: {keeper.last_words()}",
                f"Is it up? `ray up {cluster}` starts it.",
            )
        yield f"http://127.0.0.1:{port}"


class _Keeper(threading.Thread):
    """Runs a command again and again until it is closed.

    Its output goes to a file: a pipe would be held open for some seconds more by the ssh that all
    connections to a host share.
    """

    def __init__(self, command: list[str], output: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._command, self._output = command, output
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self.num_runs = 0
        """How often the command has ended by itself."""

    def run(self) -> None:
        """See `threading.Thread`."""
        while not self._ended.is_set():
            # A session of its own, so that Ctrl-C doesn't end it, and `end` ends all of it.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            if self._ended.is_set():
                self._kill()
            self._process.wait()
            self.num_runs += 1
            self._ended.wait(_ANEW_S)

    def last_words(self) -> str:
        """The last line of what the command said."""
        number = self._output.fileno()
        start = max(0, os.fstat(number).st_size - _SHOWN_BYTES)
        text = os.pread(number, _SHOWN_BYTES, start).decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].strip() if lines else "`ray dashboard` says nothing"

    def close(self) -> None:
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
