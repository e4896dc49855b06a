"""Gathers what `tsarch doctor` looks at: of this host, or of all hosts of a Ray cluster.

Bounded in time: who doesn't answer is told of as silent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tsarch.cluster.agreement import Clock
from tsarch.cluster.authentication import find_token, wants_token
from tsarch.cluster.doctor_facts import Findings, HostFacts, Rates, RayFacts
from tsarch.cluster.doctor_host import host_facts
from tsarch.cluster.doctor_network import Examiner
from tsarch.cluster.joining import find_head, is_loopback, join_ray
from tsarch.cluster.probe import marks_in
from tsarch.errors import UserError, one_line

ANSWER_S = 60.0
"""How long a host may take for an answer; it imports torch for the first."""
TEST_S = 2.0
"""Of messages and sums."""


def examine_here(run_folder: str) -> Findings:
    """This host alone."""
    here = host_facts("127.0.0.1", run_folder, {})
    return Findings(here, (here,))


def examine_cluster(address: str, run_folder: str) -> Findings:
    """All hosts of the cluster at `address`, and this one."""
    cluster = look_at_cluster(address)
    here = host_facts(_own_address(), run_folder, {})
    if cluster.refusal or not cluster.accepts_token or (
        cluster.asks_for_token and not cluster.has_token
    ):  # fmt: skip
        return Findings(here, (here,), cluster)
    try:
        join_ray(0, address, lambda _: None)
    except UserError as error:
        return Findings(here, (here,), replace(cluster, refusal=error.mistakes[0].what))
    try:
        here = replace(here, node=str(ray.util.get_node_ip_address()))
        return _examine(here, cluster, run_folder)
    finally:
        ray.shutdown()


def look_at_cluster(address: str) -> RayFacts:
    """Whether there is a Ray at an address, and whether it lets this host in."""
    try:
        target = find_head(address)
        asks = wants_token(target, None)
    except Exception as error:  # of Ray, of sockets, of names
        return RayFacts(address, refusal=one_line(error))
    token = find_token()
    accepted = not asks or token is None or not wants_token(target, token.value)
    return RayFacts(address, asks, token is not None, accepted, is_loopback(target))


def _own_address() -> str:
    """The first address of this host that isn't loopback's."""
    for addresses in psutil.net_if_addrs().values():
        for own in addresses:
            if own.family.name == "AF_INET" and not own.address.startswith("127."):
                return str(own.address)
    return "127.0.0.1"


def _examine(here: HostFacts, cluster: RayFacts, run_folder: str) -> Findings:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    examiners = [_examiner(node) for node in nodes]
    addresses = [str(node["NodeManagerAddress"]) for node in nodes]
    try:
        with marks_in([Path(run_folder).absolute()]) as marks:
            absolute = str(Path(run_folder).absolute())
            found = _ask(examiners, "facts", *[(absolute, marks)] * len(nodes))
        there = [place for place, own in enumerate(found) if own is not None]
        silent = tuple(addresses[p] for p in range(len(nodes)) if p not in there)
        alive = [examiners[place] for place in there]
        hosts = [found[place] for place in there]
        hosts = [
            replace(own, clock=clock, unreachable=lost)
            for own, clock, lost in zip(hosts, _clocks(alive), _reach(alive), strict=True)
        ]
        rates, error = _rates(alive, [own.node for own in hosts])
        return Findings(here, tuple(hosts), replace(cluster, silent=silent), rates, error)
    finally:
        for examiner in examiners:
            ray.kill(examiner, no_restart=True)


def _examiner(node: Mapping[str, Any]) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    environment = {"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}}
    actor = ray.remote(Examiner).options(
        num_cpus=0, scheduling_strategy=strategy, runtime_env=environment
    )
    return actor.remote(str(node["NodeManagerAddress"]))


def _ask(examiners: Sequence[Any], name: str, *arguments: tuple[Any, ...]) -> list[Any]:
    """Call a method of all at once; None of those that don't answer in time."""
    given = arguments or ((),) * len(examiners)
    calls = [getattr(own, name).remote(*args) for own, args in zip(examiners, given, strict=True)]
    done, _ = ray.wait(calls, num_returns=len(calls), timeout=ANSWER_S)
    answers: list[Any] = []
    for call in calls:
        try:
            answers.append(ray.get(call) if call in done else None)
        except RayError:
            answers.append(None)
    return answers


def _clocks(examiners: Sequence[Any]) -> list[Clock]:
    """One by one, so that each answer leaves little open."""
    clocks = []
    for examiner in examiners:
        sent_s = time.time()
        (own,) = _ask([examiner], "wall_clock")
        received_s = time.time()
        clocks.append(Clock() if own is None else Clock(own - received_s, own - sent_s))
    return clocks


def _reach(examiners: Sequence[Any]) -> list[dict[str, str]]:
    """What each host can't connect to, of all hosts."""
    places = [place for place in _ask(examiners, "listen") if place is not None]
    targets = {f"{host} (port {port})": (host, port) for host, port in places}
    return [lost or {} for lost in _ask(examiners, "reach", *[(targets,)] * len(examiners))]


def _rates(examiners: Sequence[Any], nodes: Sequence[str]) -> tuple[Rates | None, str]:
    """What the network carries, and why that can't be said."""
    number = len(examiners)
    if number < 2:
        return None, ""
    (place,) = _ask(examiners[:1], "meet")
    if place is None:
        return None, f"{nodes[0]} opens no port."
    began = time.perf_counter()
    calls = [own.exchange.remote(place, rank, number, TEST_S) for rank, own in enumerate(examiners)]
    try:
        answers = ray.get(calls, timeout=ANSWER_S)
    except RayError as error:
        return None, one_line(error)
    links = {
        (nodes[rank], nodes[target]): rate
        for rank, (sent, _) in enumerate(answers)
        for target, rate in sent.items()
    }
    sums = min(rate for _, rate in answers)
    return Rates(links, sums, time.perf_counter() - began), ""
