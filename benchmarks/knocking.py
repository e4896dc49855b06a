"""How long a busy host lets a connection wait: what `tsarch.cluster.knocking` is built on.

    python -m benchmarks.knocking

A process listens as Ray's do (a queue of 4,096), and is stopped. It is knocked at for some seconds,
without other work and beside processes that only compute.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import statistics
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Annotated

import typer

from tsarch.cluster.knocking import Answer, knock

_QUEUE = 4096
_PAUSE_S = 0.1
_TIMEOUT_S = 20.0


def _listen(ready: Connection) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=_QUEUE) as server:
        ready.send(server.getsockname()[1])
        while True:
            server.accept()[0].close()


def _compute() -> None:
    while True:
        pass


def measure(port: int, seconds: float) -> str:
    """Knock for some seconds; what came of it."""
    took_s, failed = [], 0
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        started_s = time.monotonic()
        failed += knock("127.0.0.1", port, _TIMEOUT_S) is not Answer.TAKEN
        took_s.append(time.monotonic() - started_s)
        time.sleep(_PAUSE_S)
    middle, most = statistics.median(took_s), max(took_s)
    return (
        f"{failed} of {len(took_s)} connections failed; median {middle * 1e3:.1f} ms, "
        f"slowest {most * 1e3:.1f} ms"
    )


def main(
    busy: Annotated[int, typer.Option(help="Processes that compute.")] = 64,
    seconds: Annotated[float, typer.Option(help="Of each measurement.")] = 15.0,
) -> None:
    """Measure and print."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with ExitStack() as processes:
        listener = context.Process(target=_listen, args=(sender,), daemon=True)
        listener.start()
        processes.callback(listener.kill)
        port = int(receiver.recv())
        assert listener.pid is not None
        os.kill(listener.pid, signal.SIGSTOP)
        print(f"alone: {measure(port, seconds)}", flush=True)
        for _ in range(busy):
            other = context.Process(target=_compute, daemon=True)
            other.start()
            processes.callback(other.kill)
        print(f"beside {busy} busy processes: {measure(port, seconds)}", flush=True)


if __name__ == "__main__":
    typer.run(main)
