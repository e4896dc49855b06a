"""Runs a side of the benchmark as a process of its own, which ends with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.sides import CORES

_NUM_RANKS = 2
_TAIL_LINES = 15
_TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(_NUM_RANKS))


class SideError(RuntimeError):
    """A side's process failed or took too long; the message has the end of its output."""


def run_module(
    module: str,
    arguments: Sequence[str],
    log: Path,
    timeout_s: float,
    on_ranks: bool = False,
    threads: int = CORES,
) -> None:
    """`python -m module` with so many threads, or the same on two ranks of one thread by torchrun.

    Raises:
        SideError: exit status other than 0, or no end within `timeout_s`.
    """
    launcher = [*_TORCHRUN, "-m", module] if on_ranks else [module]
    threads = CORES // _NUM_RANKS if on_ranks else threads
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *launcher, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        status = _wait(process, timeout_s)
    if status != 0:
        why = f"took more than {timeout_s:g} s" if status is None else f"exit status {status}"
        raise SideError(f"{module}: {why}\n{tail(log.read_text(errors='replace'))}")


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    """Exit status; None if the time is up. Nothing of the process's session is left after it."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def tail(text: str) -> str:
    """The end of a log, from its last error on if it names one."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [place for place, line in enumerate(lines) if "Error" in line]
    stop = errors[-1] + 1 if errors else len(lines)
    return "\n".join(lines[max(stop - _TAIL_LINES, 0) : stop])
