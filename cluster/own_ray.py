"""The Ray that a run starts for itself, on this machine: it is the same in every shell.

Ray (2.60) takes much from the environment: where to find another Ray, hooks that copy the current
folder to the workers and start them with `uv run`, resources, a folder for its sockets whose names
may have 107 bytes. Here it gets none of it.
"""

from __future__ import annotations

import atexit
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from tsarch.cluster.authentication import private_ray
from tsarch.errors import UserError, one_line
from tsarch.launchers import without_launchers

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
_OBJECT_STORE_BYTES = 256 * 2**20
_KEPT = ("RAY_AUTH_", "RAY_USAGE_STATS_", "RAY_ACCEL_", "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE")
"""Variables of Ray's that an own one obeys, beside those in small letters, which are its limits."""
_MOST_SOCKET_BYTES = 107
_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest name of a socket in Ray's folder."""
_PREFIX = "ray-"
_RANDOM_CHARACTERS = 8  # `tempfile` puts so many behind the prefix
_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
_UV_HOOK = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
_NICENESS = "RAY_worker_niceness"
"""What Ray adds to the niceness of workers; by itself 15, so that they give way to all others."""
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def start_ray(num_cpus: float) -> None:
    """Start a Ray with so many CPUs, or as many as the machine has if that is more: on loopback,
    with a token of its own, without a dashboard.

    Raises:
        UserError: it doesn't start.
    """
    where = "topology.runner: ray"
    folder = short_folder()
    try:
        with private_ray(), without_launchers(), own_environment():
            ray.init(
                address="local",
                num_cpus=max(math.ceil(num_cpus), len(os.sched_getaffinity(0))),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _temp_dir=str(folder),
                **QUIET,
            )
    except Exception as error:  # Ray raises what it likes
        ray.shutdown()
        what = f"no Ray starts on this machine: {one_line(error).rstrip('.')}."
        hint = f"Its logs are in {folder}. Without Ray: topology.runner: processes, or local."
        raise UserError.single(where, what, hint) from None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def hush_ray() -> None:
    """Keep Ray from printing what it knows of dead processes, which who asked them says better; Ray
    has no setting for it."""
    ray._private.worker.print_to_stdstream = lambda *_, **__: None


def is_own(variable: str) -> bool:
    """Whether a Ray that a run starts for itself may see a variable of the environment."""
    if not variable.startswith("RAY_") or variable.startswith(_KEPT):
        return True
    return variable.removeprefix("RAY_")[:1].islower()


@contextmanager
def own_environment() -> Iterator[None]:
    """Within, Ray finds nothing in the environment that is meant for another one, and starts its
    workers as this process was started."""
    before = {name: value for name, value in os.environ.items() if not is_own(name)}
    for name in before:
        del os.environ[name]
    is_nice = _NICENESS in os.environ
    os.environ.setdefault(_NICENESS, "0")
    try:
        with _uv_hook(on=False):
            yield
    finally:
        os.environ.update(before)
        if not is_nice:
            del os.environ[_NICENESS]


@contextmanager
def joining_environment() -> Iterator[None]:
    """Within, a cluster is joined without Ray's hook for `uv run`, but in a Ray job, whose folder
    and environment it makes, or where it is asked for: it would copy the current folder to ranks
    that have an environment of their own."""
    with _uv_hook(on=wants_uv_hook(os.environ)):
        yield


def wants_uv_hook(environment: Mapping[str, str]) -> bool:
    """Whether ranks on a cluster are to be started with `uv run`, if this process was."""
    asked = environment.get(_UV_HOOK)
    return _JOB in environment if asked is None else asked.lower() in ("1", "true")


@contextmanager
def _uv_hook(on: bool) -> Iterator[None]:
    before = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV  # read from the environment at import
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = before and on
    try:
        yield
    finally:
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = before


def short_folder(places: Sequence[str] | None = None) -> Path:
    """A new folder for this user alone, whose name is short enough for Ray's sockets: in the
    folder for temporary files if that is short, else in one that every system has.

    Raises:
        UserError: no folder can be made in any of them.
    """
    places = places or (tempfile.gettempdir(), *_PLACES)
    for place in filter(fits_sockets, places):
        try:
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        except OSError:
            continue
    most = _MOST_SOCKET_BYTES - len(_own_part())
    raise UserError.single(
        f"TMPDIR: {places[0]}",
        "no folder for Ray's sockets can be made there (their names would have more than "
        f"{_MOST_SOCKET_BYTES} bytes, or it can't be written), nor in {', '.join(places[1:])}.",
        f"Set TMPDIR to a folder that you may write, with a name of {most} bytes at most.",
    )


def fits_sockets(place: str) -> bool:
    """Whether a folder's name leaves room for that of a socket in it."""
    return len(os.fsencode(place)) + len(_own_part()) <= _MOST_SOCKET_BYTES


def _own_part() -> str:
    return f"/{_PREFIX}{'x' * _RANDOM_CHARACTERS}{_SOCKET}"
