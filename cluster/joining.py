"""To the Ray of a run: one of its own on this machine, or a cluster's."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from contextlib import nullcontext

import ray
from ray._private.services import canonicalize_bootstrap_address

from tsarch.cluster.authentication import enter, loopback_only
from tsarch.cluster.own_ray import QUIET, joining_environment, start_ray
from tsarch.errors import UserError, one_line
from tsarch.timings import TIMINGS

_CONNECT_TIMEOUT_S = 5.0


@TIMINGS.during("starting or joining Ray")
def join_ray(num_cpus: float, address: str | None, say: Callable[[str], None]) -> None:
    """Join the cluster at `address`; None: start a Ray on this machine, for this run alone,
    with so many CPUs or as many as the machine has, if that is more.

    Raises:
        UserError: there is no cluster at the address, or it asks for a token that isn't here; no
            Ray starts.
    """
    if address is None:
        start_ray(num_cpus)
    else:
        _join_cluster(address, say)


def _join_cluster(address: str, say: Callable[[str], None]) -> None:
    try:
        target = find_head(address)
        loopback = is_loopback(target)
        if not enter(address, target) and not loopback:
            say(
                f"warning: the Ray cluster at {target} asks for no token: whoever reaches it over "
                "the network may run any code on its hosts. Start it with authentication on "
                "(docs/security.md)"
            )
        with joining_environment(), loopback_only() if loopback else nullcontext():
            ray.init(address=target, **QUIET)
    except UserError:
        raise
    except Exception as error:  # Ray raises what it likes
        named = os.environ.get("RAY_ADDRESS") == address
        where = f"RAY_ADDRESS: {address}" if named else f"--address {address}"
        what = f"no Ray cluster can be joined: {one_line(error).rstrip('.')}."
        hint = "`--address local` starts a Ray for this run alone."
        raise UserError.single(where, what, hint) from None


def find_head(address: str) -> str:
    """HOST:PORT of the cluster's head, where something listens. (Ray itself would try for minutes
    where nothing does.)

    Raises:
        OSError, ValueError: there is none.
    """
    if address == "auto":
        found = canonicalize_bootstrap_address("auto")
        if found is None:
            raise ValueError("none runs on this machine, and RAY_ADDRESS is not set")
        address = str(found)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ValueError("it is neither `auto` nor HOST:PORT")
    _knock(address)
    if is_loopback(address):
        # Ray knows its nodes by addresses that others can reach, if they listen there.
        outside = str(canonicalize_bootstrap_address(address))
        try:
            _knock(outside)
        except OSError:
            return address
        return outside
    return address


def _knock(target: str) -> None:
    host, _, port = target.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S):
        pass


def is_loopback(target: str) -> bool:
    """Whether HOST:PORT is only to be reached from this host."""
    host = target.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
