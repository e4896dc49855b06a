"""The app on uvicorn: the socket, the signals, and one round of requests for a smoke test."""

from __future__ import annotations

import ipaddress
import json
import logging
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from tsarch.errors import RunFailedError, UserError
from tsarch.serving.engine import RunInfo

LOG = logging.getLogger("tsarch.serving")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""Names by which a server on this machine alone is called."""
_BACKLOG = 2048


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; 0: a port that the system chooses.

    Raises:
        UserError: it can't be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        own = socket.socket(family, kind, protocol)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(address)
    except OSError as error:
        what = f"can't be listened at: {error.strerror}."
        hint = "Give another --port (0: any that is free) or --host."
        raise UserError.single(f"{host}:{port}", what, hint) from None
    own.listen(_BACKLOG)
    return own


def address_of(own: socket.socket) -> str:
    """URL of a socket on this machine."""
    host, port = own.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Serves an app until it is told to end; what was accepted is answered then."""

    def __init__(self, app: FastAPI, drain_s: float) -> None:
        config = uvicorn.Config(
            app,
            access_log=False,  # ours says more
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=int(drain_s) + 1,
        )
        super().__init__(config)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end it. Uvicorn's own way raises the signal again in the end, which
        would then be the exit status."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {own: signal.signal(own, self._end) for own in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for own, handler in before.items():
                signal.signal(own, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit:  # the second time
            self.force_exit = True
            return
        LOG.info("%s: answering what was accepted, then ending", signal.Signals(number).name)
        self.should_exit = True


def ask_once(url: str, runs: Sequence[RunInfo], token: str | None = None) -> list[dict[str, Any]]:
    """A running server's answers to an example of each run, over HTTP.

    Raises:
        RunFailedError: it doesn't answer as it should.
    """
    _asked(f"{url}/health", None, token)
    for own in runs:
        if not own.examples:
            raise RunFailedError(f"run {own.name}: no example is short enough for its models")
    bodies = [{"run": own.name, "inputs": [own.examples[0]]} for own in runs]
    return [{**own, **_asked(f"{url}/predict", own, token)} for own in bodies]


def _asked(url: str, body: dict[str, Any] | None, token: str | None) -> Any:
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=120) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise RunFailedError(f"{url}: {error.code} {error.read().decode()}") from None
    except OSError as error:
        raise RunFailedError(f"{url} doesn't answer: {error}") from None
