"""Load on a server on loopback, bounded in count and time: what it refuses, whether it loses
anything, how often the teacher needn't read, and whether memory grows.

    python -m benchmarks.serving_load [RUN] [--case NAME]... [--requests N] [--write]

Without RUN a tiny one is trained first. `--write` puts the table into docs/serving.md. Cases:
`limit`, `hits`, `swap` and `replica` ask three teachers and a student on Ray Serve; `memory` asks
the embedded server.
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
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.sections import write_section
from benchmarks.serving_client import Load, Server, ask, serving
from benchmarks.serving_load_table import markdown

CASES = ("limit", "hits", "swap", "replica", "memory")
_ROOM = "queue_tokens=2000"
"""Limit of the cases; what comes above it is refused."""
_REPLICAS = 4
"""Three teachers and a student."""
_DOCUMENTS = 200
_MEGABYTE = 1 << 20
_PAGE = Path("docs/serving.md")


@contextlib.asynccontextmanager
async def under_load(server: Server, num_requests: int, load: Load) -> AsyncIterator[None]:
    """While the block runs, and after it: so many requests at least, a quarter of them after it,
    however fast they are answered."""
    bodies = texts(num_requests, "under load")
    is_over = False

    def asked() -> Iterator[Mapping[str, Any]]:
        for number in itertools.count():
            if is_over and number >= num_requests:
                break
            yield bodies[number % num_requests]
        yield from bodies[: num_requests // 4]

    task = asyncio.create_task(ask(server, asked(), 16))
    await asyncio.sleep(1)
    try:
        yield
    finally:
        is_over = True
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
    total = 20 * num_requests
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


def measure(
    run: Path, cases: Sequence[str], num_requests: int, ends_s: float
) -> Iterator[tuple[str, Any]]:
    """Case → what was found; `AssertionError` where it isn't as it must be, `TimeoutError` where
    the monotonic clock shows `ends_s` before a case is over."""

    async def within(case: str, server: Server) -> Any:
        async with asyncio.timeout(ends_s - time.monotonic()):
            return await own[f"{case}_case"](server, run, num_requests)

    own: dict[str, Any] = {f"{case}_case": globals()[f"{case}_case"] for case in CASES}
    on_ray = [case for case in cases if case != "memory"]
    options = ("--ray", "--teacher-replicas", "3", "--limit", _ROOM)
    if on_ray:
        with serving(run, *options) as server:
            for case in on_ray:
                yield case, asyncio.run(within(case, server))
    if "memory" in cases:
        with serving(run, "--limit", "cache_mb=16") as server:
            yield "memory", asyncio.run(within("memory", server))


def main() -> None:
    """Run the cases and print what was found, a JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--case", action="append", choices=CASES, default=[])
    parser.add_argument("--requests", type=int, default=1000, help="a case; for memory 20 times")
    parser.add_argument("--minutes", type=float, default=60.0, help="of all cases at most")
    parser.add_argument("--write", action="store_true", help="put the table into the docs")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        if asked.run is None:
            run = tiny_run(Path(temporary))
        else:
            skipped = shutil.ignore_patterns("checkpoints", "versions", "current.json")
            shutil.copytree(asked.run, run, ignore=skipped)  # a swap makes a version in it
        told: dict[str, Any] = {}
        ends_s = time.monotonic() + 60 * asked.minutes
        for case, found in measure(run, asked.case or CASES, asked.requests, ends_s):
            print(json.dumps({"case": case, **found}), flush=True)
            told[case] = found
    name = "a tiny one" if asked.run is None else f"`{asked.run.name}`"
    text = markdown(name, told, len(os.sched_getaffinity(0)))
    print(text)
    if asked.write:
        write_section(_PAGE, "load", text)


if __name__ == "__main__":
    main()
