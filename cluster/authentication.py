"""Ray's tokens: one of its own for the Ray that a run starts, the user's for a cluster that asks.

Whoever may talk to a Ray may run any code on its hosts, so Ray (2.60) turns away who has no token
if it was started with `RAY_AUTH_MODE=token`. Ray reads mode and token from the environment and
keeps both for the whole process; `take_effect` makes it read them again. That and the call in
`wants_token` are Ray's own business, and used in this file alone.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
from ray._private import ray_constants

from tsarch.errors import UserError

_MODE = "RAY_AUTH_MODE"
_TOKEN = "RAY_AUTH_TOKEN"
_TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
_DEFAULT_PATH = Path("~/.ray/auth_token")
_ANSWER_TIMEOUT_S = 5.0
_CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


@dataclass(frozen=True)
class Token:
    """A token that the user has."""

    value: str = field(repr=False)
    place: str
    """Where it was found, for messages."""


@contextmanager
def private_ray() -> Iterator[None]:
    """Within: a Ray that is started listens on loopback alone, and has a token that nobody else
    has. Ray's processes inherit it; it is in no file, and afterwards not in this environment."""
    before = {name: os.environ.get(name) for name in (_MODE, _TOKEN, _TOKEN_PATH)}
    os.environ |= {_MODE: "token", _TOKEN: secrets.token_hex(32)}
    os.environ.pop(_TOKEN_PATH, None)
    take_effect()
    try:
        with loopback_only():
            yield
    finally:
        # What this process has taken in stays in effect until the next `take_effect`.
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def loopback_only() -> Iterator[None]:
    """Within, Ray takes 127.0.0.1 for this host's address, and listens there. (Ray has the switch
    for computers whose firewall would ask; in its place it would listen on all interfaces.)"""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def enter(address: str, target: str) -> bool:
    """Make this process ready to join the cluster whose head is at `target`, HOST:PORT; returns
    whether the cluster asks for a token. A token is only shown to a cluster that does.

    Args:
        address: what the user calls the cluster.

    Raises:
        UserError: the cluster asks for a token, and the user has none or a wrong one.
        ConnectionError: no Ray's head answers at `target`.
    """
    if not wants_token(target, None):
        _want_no_token()
        take_effect()
        return False
    how = (
        "`ray get-auth-token` on the cluster's head prints it (a secret: who has it may run any "
        f"code there). Put it into {_DEFAULT_PATH} here, readable for you alone (chmod 600), or "
        f"into another file that {_TOKEN_PATH} names."
    )
    where = f"--address {address}"
    token = find_token()
    if token is None:
        raise UserError.single(where, "this Ray cluster asks for a token, and none is here.", how)
    if wants_token(target, token.value):
        what = f"this Ray cluster does not accept the token in {token.place}: it has another one."
        raise UserError.single(where, what, how)
    os.environ[_MODE] = "token"
    take_effect()
    return True


def be_ready_to_show_a_token() -> None:
    """Let Ray show the user's token to whoever asks for one; without one it just asks."""
    if find_token() is not None:
        os.environ.setdefault(_MODE, "token")  # else Ray doesn't show it
    _want_no_token()
    take_effect()


def _want_no_token() -> None:
    if os.environ.get(_MODE) == "token" and find_token() is None:
        os.environ[_MODE] = "disabled"  # else Ray would miss the token


def wants_token(target: str, token: str | None) -> bool:
    """Whether the Ray at `target` turns this token (None: none) away; takes milliseconds, where
    `ray.init` tries for 20 s. False too where the answer is another one: then Ray will tell.

    Raises:
        ConnectionError: what listens there does not answer as a Ray's head does.
    """
    proof = None if token is None else [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(_CHECK_ALIVE)
        try:
            call(b"", timeout=_ANSWER_TIMEOUT_S, metadata=proof)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                hint = "Take the port of `ray start --head`, 6379 unless it was given another."
                raise ConnectionError(f"no Ray's head answers there. {hint}") from None
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def find_token() -> Token | None:
    """The user's token, from where Ray takes it."""
    if os.environ.get(_TOKEN):
        return Token(os.environ[_TOKEN].strip(), _TOKEN)
    path = Path(os.environ.get(_TOKEN_PATH) or _DEFAULT_PATH).expanduser()
    try:
        value = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return Token(value, str(path)) if value else None


def take_effect() -> None:
    """Let Ray read mode and token of this process's environment again. In this order: a thread
    of an earlier Ray must not look for a token when there is none any more."""
    raylet: Any = import_module("ray._raylet")  # its type stubs lack both
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
