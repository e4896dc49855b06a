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
    port, ended = _free_port(), threading.Event()
    keeper = _Keeper([str(_RAY), "dashboard", str(cluster), "--port", str(port)], ended)
    keeper.start()
    try:
        if not _opens(port):
            raise UserError.single(
                f"--cluster {cluster}",
                f"no way to the dashboard of its head was found in {_OPEN_TIMEOUT_S:.0f} s: "
                f"{keeper.last_words()}",
                f"Is it up? `ray up {cluster}` starts it.",
            )
        yield f"http://127.0.0.1:{port}"
    finally:
        ended.set()
        keeper.join()


class _Keeper(threading.Thread):
    """Runs a command again and again until `ended`."""

    def __init__(self, command: list[str], ended: threading.Event) -> None:
        super().__init__(daemon=True)
        self._command, self._ended, self._output = command, ended, ""

    def run(self) -> None:
        while not self._ended.is_set():
            # A session of its own, so that Ctrl-C doesn't end the way, and all of it is ended.
            with subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            ) as process:
                waiting = threading.Thread(target=self._end, args=(process,), daemon=True)
                waiting.start()
                assert process.stdout is not None
                for line in process.stdout:
                    self._output = (self._output + line)[-2000:]
                process.wait()
            self._ended.wait(_ANEW_S)

    def last_words(self) -> str:
        """The last line of what the command said."""
        lines = [line for line in self._output.splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"

    def _end(self, process: subprocess.Popen[str]) -> None:
        while process.poll() is None and not self._ended.wait(_POLL_S):
            pass
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


def _opens(port: int) -> bool:
    deadline_s = time.monotonic() + _OPEN_TIMEOUT_S
    while time.monotonic() < deadline_s:
        with socket.socket() as own:
            if own.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(_POLL_S)
    return False


def _free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])
