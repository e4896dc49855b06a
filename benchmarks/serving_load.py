"""Load on a server on loopback, bounded in count and time: what it refuses, whether it loses
anything, how often the teacher needn't read, and whether memory grows.

    python -m benchmarks.serving_load [RUN] [--case NAME]... [--requests N]

Without RUN a tiny one is trained first. Cases: `limit`, `hits`, `swap` and `replica` ask three
teachers and a student on Ray Serve; `memory` asks the embedded server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import psutil

CASES = ("limit", "hits", "swap", "replica", "memory")
_START_S = 300.0
_REQUEST_S = 120.0
_END_S = 60.0
_ROOM = "queue_tokens=2000"
"""Limit of the cases; what comes above it is refused."""
_REPLICAS = 4
"""Three teachers and a student."""
_DOCUMENTS = 200
_MEGABYTE = 1 << 20


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


async def ask(server: Server, bodies: Sequence[Mapping[str, Any]], at_once: int) -> Load:
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


@contextlib.asynccontextmanager
async def under_load(server: Server, num_requests: int, load: Load) -> AsyncIterator[None]:
    """While the block runs, and until as many requests are answered as there are."""
    task = asyncio.create_task(ask(server, texts(num_requests, "under load"), 16))
    await asyncio.sleep(1)
    yield
    assert not task.done(), "the load was over before anything happened"
    found = await task
    load.statuses, load.versions, load.seconds = found.statuses, found.versions, found.seconds
    load.wall_s, load.without_retry = found.wall_s, found.without_retry


def texts(number: int, name: str, mode: str | None = None) -> list[dict[str, Any]]:
    """Requests, each with a short text of its own."""
    words = f"Maria Rossi flew from Rome to Paris on flight {{}} , {name} ."
    asked = [{"inputs": [words.format(n)]} for n in range(number)]
    return asked if mode is None else [{**own, "mode": mode} for own in asked]


async def limit_case(server: Server, run: Path, num_requests: int) -> dict[str, Any]:
    """Below the limit no error; above it refusals that say when to try again."""
    below = await ask(server, texts(num_requests, "below"), 16)
    assert set(below.statuses) == {200}, below.statuses
    long = [{"inputs": ["Maria flew to Rome . " * 60 + str(n)]} for n in range(200)]
    above = await ask(server, long, 100)
    assert set(above.statuses) <= {200, 429, 503}, above.statuses
    assert set(above.statuses) > {200}, f"nothing is refused: {above.statuses}"
    assert not above.without_retry
    return {"below": below.as_json(), "above": above.as_json()}


async def replica_case(server: Server, run: Path, num_requests: int) -> dict[str, Any]:
    """A killed replica takes no accepted request with it."""
    found = {}
    for half in ("teacher", "student"):
        await all_there(server)
        load, victim = Load(), server.replicas(half)[0]
        async with under_load(server, num_requests, load):
            victim.kill()
        assert set(load.statuses) == {200}, load.statuses
        found[half] = load.as_json()
    return found


async def swap_case(server: Server, run: Path, num_requests: int) -> dict[str, Any]:
    """A swap fails no request; some are answered by the old version, some by the new."""
    new = run / "versions" / "second"
    shutil.copytree(run, new, ignore=shutil.ignore_patterns("versions", "checkpoints"))
    (new / "model" / "note.txt").write_text("other weights, to who looks at their digest")
    load = Load()
    async with under_load(server, num_requests, load):
        (run / "current.json").write_text(json.dumps({"version": "second"}))
        async with server.client() as client:
            started = time.monotonic()
            (await client.post("/runs/own/reload")).raise_for_status()
            seconds = time.monotonic() - started
    assert set(load.statuses) == {200}, load.statuses
    assert len(load.versions) == 2, load.versions
    return {**load.as_json(), "versions": dict(load.versions), "swap_s": round(seconds, 2)}


async def hits_case(server: Server, run: Path, num_requests: int) -> dict[str, Any]:
    """Of documents asked in random order, the teachers read each once."""
    await all_there(server)
    documents = texts(_DOCUMENTS, "a document", "joint")
    times = max(21, num_requests // _DOCUMENTS)
    asked = list(itertools.chain.from_iterable([documents] * times))
    random.Random(0).shuffle(asked)
    before = await cache_counts(server)
    load = await ask(server, asked, 16)
    after = await cache_counts(server)
    hits, misses = (new - old for new, old in zip(after, before, strict=True))
    assert set(load.statuses) == {200}, load.statuses
    rate = hits / (hits + misses)
    assert rate >= 0.95, rate
    return {**load.as_json(), "hits": hits, "misses": misses, "hit_rate": round(rate, 4)}


async def all_there(server: Server) -> None:
    """Wait until every replica is there."""
    async with server.client() as client:
        for _ in range(240):
            await client.post("/predict", json={"inputs": ["Rome"]})  # replicas are counted now
            if metric((await client.get("/metrics")).text, "tsarch_replicas") == _REPLICAS:
                return
            await asyncio.sleep(0.5)
    raise RuntimeError("a replica that was lost doesn't come back")


async def cache_counts(server: Server) -> tuple[float, float]:
    """Hits and misses of all replicas."""
    async with server.client() as client:
        text = (await client.get("/metrics")).text
    return metric(text, "tsarch_cache_hits_total"), metric(text, "tsarch_cache_misses_total")


def metric(text: str, name: str) -> float:
    """The sum of a metric over its labels."""
    values = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, values))


async def memory_case(server: Server, run: Path, num_requests: int) -> dict[str, Any]:
    """Memory doesn't grow with requests: 5 % at most after the first quarter."""
    total = max(num_requests, 20_000)
    sizes = []
    statuses: Counter[int] = Counter()
    started = time.monotonic()
    for part in range(8):
        load = await ask(server, texts(total // 8, f"part {part}"), 16)
        statuses += load.statuses
        sizes.append(server.process.memory_info().rss)
    assert set(statuses) == {200}, statuses
    growth = sizes[-1] / sizes[1] - 1
    assert growth <= 0.05, [size // _MEGABYTE for size in sizes]
    return {
        "statuses": dict(statuses),
        "per_s": round(total / (time.monotonic() - started), 1),
        "rss_mb": [round(size / _MEGABYTE) for size in sizes],
        "growth": round(growth, 4),
    }


def tiny_run(folder: Path) -> Path:
    """A run that is trained in seconds."""
    from tsarch.launch.training import run_training

    run_training(import_module("tests.test_pair").run_of(folder, "ner"))
    return folder / "run"


def measure(run: Path, cases: Sequence[str], num_requests: int) -> Iterator[tuple[str, Any]]:
    """Case → what was found; `AssertionError` where it isn't as it must be."""
    own: dict[str, Any] = {f"{case}_case": globals()[f"{case}_case"] for case in CASES}
    on_ray = [case for case in cases if case != "memory"]
    options = ("--ray", "--teacher-replicas", "3", "--limit", _ROOM)
    if on_ray:
        with serving(run, *options) as server:
            for case in on_ray:
                yield case, asyncio.run(own[f"{case}_case"](server, run, num_requests))
    if "memory" in cases:
        with serving(run, "--limit", "cache_mb=16") as server:
            yield "memory", asyncio.run(memory_case(server, run, num_requests))


def main() -> None:
    """Run the cases and print what was found, a JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--case", action="append", choices=CASES, default=[])
    parser.add_argument("--requests", type=int, default=1000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        if asked.run is None:
            run = tiny_run(Path(temporary))
        else:
            skipped = shutil.ignore_patterns("checkpoints", "versions", "current.json")
            shutil.copytree(asked.run, run, ignore=skipped)  # a swap makes a version in it
        for case, found in measure(run, asked.case or CASES, asked.requests):
            print(json.dumps({"case": case, **found}), flush=True)


if __name__ == "__main__":
    main()
