"""`tsarch serve`: runs that answer over HTTP."""

from __future__ import annotations

import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tsarch.clock import now_s
from tsarch.errors import RunFailedError, UserError
from tsarch.launch.prediction import progress_console
from tsarch.prediction.hub import is_hub_name
from tsarch.prediction.loading import check_options, home_of
from tsarch.prediction.remote import is_url

if TYPE_CHECKING:
    import socket

    from tsarch.launch.prediction import Computing
    from tsarch.serving.access_tokens import AccessTokens
    from tsarch.serving.batcher import Batching
    from tsarch.serving.engine import Engine
    from tsarch.serving.limits import Limits
    from tsarch.serving.local_engine import Loading
    from tsarch.serving.metrics import Metrics
    from tsarch.serving.server import Server

LOG = logging.getLogger("tsarch.serving")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_START_S = 60


@dataclass(frozen=True)
class OnRay:
    """Whether and where replicas on Ray Serve answer."""

    is_on: bool = False
    address: str | None = None
    """See `launch.training.cluster_address`."""
    teachers: int = 1
    students: int = 1


@dataclass(frozen=True)
class ServeOptions:
    """How runs are served."""

    host: str
    port: int
    token_file: Path | None
    computing: Computing
    limits: Sequence[str]
    """`NAME=VALUE` of `serving.limits.Limits`."""
    follow_s: float
    """How often a new current version is looked for; 0: never."""
    once: bool
    ray: OnRay = OnRay()
    stores: tuple[str, ...] = ()
    """Folders of `tsarch read`."""


def serve_runs(runs: Sequence[str], options: ServeOptions) -> None:
    """Serve runs until SIGTERM or SIGINT, or, with `once`, until each has answered an example.

    Raises:
        UserError: a run, a token or the address can't be had.
        RunFailedError: with `once`: an answer isn't what it should be.
    """
    named = named_runs(runs)
    check_installed()
    own = options.computing
    check_options(own.device, own.precision, own.batch_tokens, own.backend)
    from tsarch.launch.training import quieten
    from tsarch.serving.access_tokens import read_tokens
    from tsarch.serving.limits import parse_limits
    from tsarch.serving.metrics import Metrics
    from tsarch.serving.server import listen

    quieten()
    _log_to_stderr()
    limits, tokens = parse_limits(options.limits), read_tokens(options.token_file)
    with listen(options.host, options.port) as place:  # before models are loaded
        _warn(options.host, tokens)
        metrics = Metrics()
        make = _ray_engine if options.ray.is_on else _local_engine
        engine = make(named, options, limits, metrics)
        _serve(engine, place, tokens, limits, metrics, options)


def named_runs(runs: Sequence[str]) -> dict[str, str]:
    """Name → folder, URL or name on the hub, of each of them or `NAME=` one of them.

    Raises:
        UserError: a name is odd or used twice, or there is no such folder.
    """
    found: dict[str, str] = {}
    for own in runs:
        name, sign, folder = own.partition("=")
        if not sign or Path(own).is_dir() or is_url(own):
            name, folder = Path(own).absolute().name, own
        if _NAME.fullmatch(name) is None:
            hint = "Name it by letters, digits, points, - and _: NAME=FOLDER."
            raise UserError.single(own, "has no name that can be asked for.", hint)
        if name in found:
            hint = f"Name them: {name}-a={found[name]} {name}-b={folder}."
            raise UserError.single(own, f"is the second run called {name}.", hint)
        if not Path(folder).is_dir() and not _is_elsewhere(folder):
            raise UserError.single(folder, "is not a folder.")
        found[name] = folder
    return found


def _is_elsewhere(run: str) -> bool:
    """Whether a copy of a run has to be made, to be read."""
    return is_url(run) or is_hub_name(run)


def check_installed() -> None:
    """Check that what serves is there.

    Raises:
        UserError: it isn't.
    """
    missing = [own for own in ("fastapi", "prometheus_client", "uvicorn") if find_spec(own) is None]
    if missing:
        hint = 'Install them: pip install "tsarch[serving]".'
        what = f"needs packages that are not installed: {', '.join(missing)}."
        raise UserError.single("tsarch serve", what, hint)


def _local_engine(
    runs: dict[str, str], options: ServeOptions, limits: Limits, metrics: Metrics
) -> Engine:
    from tsarch.serving.local_engine import LocalEngine

    own = options.ray
    if own.address is not None or (own.teachers, own.students) != (1, 1):
        what = "--address and --…-replicas are of replicas on Ray Serve."
        raise UserError.single("tsarch serve", what, "Give --ray too.")
    return LocalEngine(runs, *_computing(options, limits), limits.cache_mb << 20, metrics)


def _ray_engine(
    runs: dict[str, str], options: ServeOptions, limits: Limits, metrics: Metrics
) -> Engine:
    if find_spec("mmh3") is None:  # of Ray Serve's extras
        hint = 'Install them: pip install "tsarch[serving]".'
        raise UserError.single("tsarch serve --ray", "needs ray[serve].", hint)
    from tsarch.cluster.serving import RayEngine
    from tsarch.cluster.serving_deploy import Replicas
    from tsarch.launch.training import cluster_address

    own = options.ray
    address = cluster_address(own.address)
    if options.computing.backend != "torch":
        what = "is for one process: replicas on Ray Serve compute with torch."
        raise UserError.single("--backend onnx", what, "Leave out --ray, or --backend.")
    for run in runs.values():
        if address is not None and _is_elsewhere(run):
            hint = "Copy it to one path on every node, and name that."
            raise UserError.single(run, "can't be read by all nodes of a cluster.", hint)
    return RayEngine(
        {name: home_of(run) for name, run in runs.items()},
        Replicas(own.teachers, own.students, limits.cache_mb << 20),
        address,
        *_computing(options, limits),
        metrics,
        progress_console().print,
    )


def _computing(options: ServeOptions, limits: Limits) -> tuple[Loading, Batching]:
    from tsarch.serving.batcher import Batching
    from tsarch.serving.local_engine import Loading

    own = options.computing
    stores = tuple(str(Path(own).absolute()) for own in options.stores)  # replicas work elsewhere
    return (
        Loading(own.device, own.precision, own.batch_tokens, own.backend, stores),
        Batching(own.batch_tokens, limits.wait_ms / 1000, limits.queue_tokens),
    )


def _serve(
    engine: Engine,
    place: socket.socket,
    tokens: AccessTokens,
    limits: Limits,
    metrics: Metrics,
    options: ServeOptions,
) -> None:
    from tsarch.serving.access_tokens import AccessTokens
    from tsarch.serving.app import make_app
    from tsarch.serving.following import follow
    from tsarch.serving.server import LOOPBACK, Server, address_of, is_loopback

    # Names matter where no token does: a page may make a browser call this machine by another.
    hosts = ("*",) if tokens or not is_loopback(options.host) else LOOPBACK
    own = secrets.token_urlsafe(32) if options.once and tokens else None
    accepted = AccessTokens([own]) if own else tokens
    followed = (lambda: follow(engine, options.follow_s)) if options.follow_s else None
    app = make_app(engine, accepted, limits, metrics, hosts, followed)
    server = Server(app, limits.request_s)
    console = progress_console()
    for run in engine.runs():
        console.print(f"{run.name}: {run.task}, version {run.version}")
    console.print(f"serving at {address_of(place)}")
    if not options.once:
        server.run(sockets=[place])
        return
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    try:
        _ask_once(engine, address_of(place), own, server)
    finally:
        server.should_exit = True
        thread.join()


def _ask_once(engine: Engine, url: str, token: str | None, server: Server) -> None:
    """Print the answers to an example of each run.

    Raises:
        RunFailedError: there are none.
    """
    from tsarch.serving.server import ask_once

    ends = now_s() + _START_S
    while not server.started:
        if server.should_exit or now_s() > ends:
            raise RunFailedError(f"the server at {url} didn't start")
        time.sleep(0.01)
    for own in ask_once(url, engine.runs(), token):
        print(json.dumps(own, ensure_ascii=False))


def _warn(host: str, tokens: AccessTokens) -> None:
    """Say who may ask, where that is everybody."""
    from tsarch.serving.access_tokens import VARIABLE
    from tsarch.serving.server import is_loopback

    if not tokens and not is_loopback(host):
        LOG.warning(
            "%s is reached from other machines, and everybody there may ask: no token is needed. "
            "Give --token-file FILE (or %s), or serve at 127.0.0.1 behind what asks for one. "
            "Texts travel unencrypted; let a proxy add TLS.",
            host,
            VARIABLE,
        )


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name, level in (("tsarch.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        own = logging.getLogger(name)
        own.handlers = [handler]
        own.setLevel(level)
        own.propagate = False
