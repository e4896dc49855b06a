"""One side of the inference benchmark, in a process of its own: loads, answers, and is measured.

    python -m benchmarks.inference_child JOB.json

It imports nothing but the standard library until a side does, so that start-up times and memory are
the side's own, and so that it runs in other environments too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.inference_sides import Row, open_side

LOAD_THREADS = 4
"""Clients that ask at the same time, for what is called "under load"."""


def main(job_file: Path) -> None:
    """Measure what the job says and write it to the job's output."""
    job = json.loads(job_file.read_text())
    rows: list[Row] = job["rows"]
    side = open_side(job)
    side.answer(rows[:1])
    result: dict[str, Any] = {"startup_s": time.time() - job["started_s"]}
    result["loaded_bytes"] = _peak_bytes()
    result["entities"] = side.answer(rows)
    timed = rows if side.timed is None else [rows[n] for n in side.timed]
    result |= _throughput(lambda: side.answer_again(timed), len(timed), job["seconds"])
    ask: list[Callable[[], Any]] = [side.asked(row) for row in timed]
    result["alone_ms"] = _latencies(ask, job["seconds"])
    result |= _under_load(ask, job["seconds"])
    result["peak_bytes"] = _peak_bytes()
    Path(job["output"]).write_text(json.dumps(result))


def _peak_bytes() -> int:
    """Of this process alone: what `getrusage` says counts the process that started it, too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (most,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return most * 1024


def _throughput(do: Callable[[], Any], num: int, seconds: float) -> dict[str, float]:
    """Rows a second, all of them asked for at once, and CPU milliseconds of one."""
    started, cpu, turns = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < seconds:
        do()
        turns += 1
    elapsed = time.perf_counter() - started
    cpu = time.process_time() - cpu
    return {"rows_per_s": turns * num / elapsed, "cpu_ms": 1000 * cpu / (turns * num)}


def _latencies(ask: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """Milliseconds of answers that are asked for one by one."""
    found, stop = [], time.perf_counter() + seconds
    for number in range(100_000):
        started = time.perf_counter()
        ask[number % len(ask)]()
        found.append(1000 * (time.perf_counter() - started))
        if time.perf_counter() > stop:
            break
    return found


def _under_load(ask: Sequence[Callable[[], Any]], seconds: float) -> dict[str, Any]:
    """The same of several threads that ask at the same time, and answers a second of them all."""
    with ThreadPoolExecutor(LOAD_THREADS) as pool:
        parts = [ask[n::LOAD_THREADS] for n in range(LOAD_THREADS)]
        started = time.perf_counter()
        found = [ms for own in pool.map(lambda p: _latencies(p, seconds), parts) for ms in own]
        elapsed = time.perf_counter() - started
    return {"loaded_ms": found, "loaded_rows_per_s": len(found) / elapsed}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
