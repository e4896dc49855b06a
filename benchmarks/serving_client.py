"""A server of the load test, on loopback, and who asks it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

_START_S = 300.0
_REQUEST_S = 120.0
_END_S = 60.0


@dataclass
class Load:
    """What became of requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    without_retry: int = 0
    """Refusals that don't say when to try again."""
    seconds: list[float] = field(default_factory=list)
    """Of each that was answered."""
    wall_s: float = 0.0

    def add(self, response: httpx.Response, seconds: float) -> None:
        """Count a response."""
        self.statuses[response.status_code] += 1
        if response.status_code == 200:
            self.seconds.append(seconds)
            self.versions[response.json()["version"]] += 1
        elif "retry-after" not in response.headers:
            self.without_retry += 1

    def as_json(self) -> dict[str, Any]:
        """Counts, and milliseconds of those that were answered."""
        ordered = sorted(self.seconds) or [0.0]
        return {
            "statuses": dict(self.statuses),
            "per_s": round(sum(self.statuses.values()) / max(self.wall_s, 1e-9), 1),
            "p50_ms": round(1000 * ordered[len(ordered) // 2], 1),
            "p99_ms": round(1000 * ordered[len(ordered) * 99 // 100], 1),
        }


@dataclass(frozen=True)
class Server:
    """A server on loopback."""

    url: str
    process: psutil.Process

    def client(self) -> httpx.AsyncClient:
        """To ask it."""
        limits = httpx.Limits(max_connections=256)
        return httpx.AsyncClient(base_url=self.url, timeout=_REQUEST_S, limits=limits)

    def replicas(self, half: str) -> list[psutil.Process]:
        """Processes of a half's replicas, the oldest first."""
        children = self.process.children(recursive=True)
        name = re.compile(rf"ServeReplica:.*:{half}\b")
        own = [child for child in children if name.search(" ".join(_command(child)))]
        return sorted(own, key=lambda child: child.create_time())


def _command(process: psutil.Process) -> Sequence[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return ()


@contextlib.contextmanager
def serving(run: Path, *options: str) -> Iterator[Server]:
    """`tsarch serve` of a run, until the end of the block; it must leave nothing behind."""
    start = [sys.executable, "-c", "from tsarch.launch.cli import main; main()"]
    command = [*start, "serve", f"own={run}", "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield Server(_url(process), psutil.Process(process.pid))
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.wait(_END_S)
        left = psutil.wait_procs(children, timeout=10)[1]
        assert not left, f"it left {left}"
    finally:
        process.kill()


def _url(process: subprocess.Popen[str]) -> str:
    """Where a server is, which it says when it is ready."""
    assert process.stderr is not None
    said: list[str] = []
    ends = time.monotonic() + _START_S
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"http://\S+", line):
            threading.Thread(target=_drain, args=(process,), daemon=True).start()
            return found.group()
        if time.monotonic() > ends:
            break
    raise RuntimeError("the server doesn't start: " + "".join(said[-20:]))


def _drain(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for _ in process.stderr:
        pass


async def ask(server: Server, bodies: Iterable[Mapping[str, Any]], at_once: int) -> Load:
    """Send requests, so many at a time."""
    load, waiting, started = Load(), iter(bodies), time.monotonic()
    async with server.client() as client:

        async def work() -> None:
            for body in waiting:
                sent = time.monotonic()
                response = await client.post("/predict", json=body)
                load.add(response, time.monotonic() - sent)

        await asyncio.gather(*(work() for _ in range(at_once)))
    load.wall_s = time.monotonic() - started
    return load
