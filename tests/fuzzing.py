"""What the fuzzers share: a command in this process, judged by what a user would see of it."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import tsarch.launch.training
from tsarch.launch.cli import main

LIMIT_S = 60.0
"""A case that takes longer hangs; most take milliseconds."""


class Hung(BaseException):
    """A case took too long. No `except Exception` may swallow it."""


class Started(Exception):  # noqa: N818 - no error
    """All checks are passed: the crew would be gathered now."""


def few(cases: int) -> settings:
    """A few cases, always the same ones."""
    return settings(_settings(cases), derandomize=True, database=None)


def many(cases: int) -> settings:
    """Many cases, others each time, in `make fuzz`; a few of them, always the same, elsewhere."""
    return _settings(cases) if os.environ.get("TSARCH_FUZZ") else few(max(cases // 10, 10))


def _settings(cases: int) -> settings:
    return settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck))


@contextlib.contextmanager
def time_limit(seconds: float = LIMIT_S) -> Iterator[None]:
    """Raise `Hung` after so long."""

    def stop(number: int, frame: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def stop_at_the_crew(patch: pytest.MonkeyPatch) -> None:
    """Let `tsarch train` end with `Started` in place of starting ranks."""

    def gather(*_: Any) -> None:
        raise Started

    patch.setattr(tsarch.launch.training, "gather", gather)


def command(arguments: Sequence[str]) -> tuple[int | None, str]:
    """(exit status, or None if ranks would have been started; all that was printed).

    Standard output is as strict as a real one: text that UTF-8 can't hold is an error.
    """
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    status: int | None = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), time_limit():
        try:
            main(arguments)
        except Started:
            status = None
        except SystemExit as ended:
            status = int(ended.code or 0)
    for stream in (out, err):
        stream.seek(0)
    return status, out.read() + err.read()


def bytes_changed(content: bytes, at: int, how: str, data: st.DataObject) -> bytes:
    """Bytes that are `cut` from a place on, one of them a `flip`, or others put in."""
    match how:
        case "cut":
            return content[:at]
        case "flip" if content:
            at = min(at, len(content) - 1)
            byte = content[at] ^ data.draw(st.integers(1, 255))
            return content[:at] + bytes([byte]) + content[at + 1 :]
        case _:
            return content[:at] + data.draw(st.binary(max_size=20)) + content[at:]


def check_refusal(status: int | None, text: str) -> None:
    """Exit status 2 with messages for people."""
    assert status == 2, (status, text)
    assert "Traceback" not in text
    messages = text.split("error ", 1)[1].split("\nerror ")
    assert all(message.strip() for message in messages), text


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Path → (size, time of change) of all that a folder holds."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }
