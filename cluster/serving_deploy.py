"""Ray Serve for `tsarch serve`: started or joined, with the replicas of each run's halves, and left
as it was found."""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import ProxyLocation, RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from tsarch.blueprint import Blueprint
from tsarch.cluster.fitting import Demand, Resources, refusal
from tsarch.cluster.joining import join_ray
from tsarch.cluster.own_ray import hush_ray
from tsarch.cluster.placement import node_supplies
from tsarch.cluster.serving_replica import Replica
from tsarch.errors import UserError, one_line
from tsarch.serving.batcher import Batching
from tsarch.serving.local_engine import Loading
from tsarch.topology import Reads

# Consistent hashing of what a request is about: a document meets the replica that has read it, and
# where one is lost or added, only its share of the documents moves.
_BY_DOCUMENT = RequestRouterConfig(
    request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
)
_MANY = 100_000
"""Requests in a replica: who asks bounds them."""
_HEALTH_PERIOD_S = 2.0
_SHUTDOWN_S = 5.0


@dataclass(frozen=True)
class Replicas:
    """How a run's halves are spread.

    Attributes:
        cache_bytes: of the teacher's states, in each of its replicas.
    """

    teachers: int = 1
    students: int = 1
    cache_bytes: int = 256 << 20

    def of(self, reads: Reads) -> int:
        """Of a half."""
        return self.teachers if reads == "contexts" else self.students


@dataclass(frozen=True)
class RunPlan:
    """A run that is to be served."""

    name: str
    folder: Path
    blueprint: Blueprint
    writes: bool
    """Whether its answers are texts."""

    @property
    def halves(self) -> dict[str, Reads]:
        """Name → what it reads."""
        return {stage.name: stage.reads for stage in self.blueprint.stages}

    def models(self, reads: Reads) -> tuple[Reads, ...]:
        """That a half's replicas have: where texts are written token by token by both, the
        teacher's have the student too."""
        if self.writes and reads == "contexts":
            return tuple(self.halves.values())
        return (reads,)


Handles = dict[Reads, DeploymentHandle[Any]]


class Fleet:
    """The replicas of some runs on Ray Serve."""

    def __init__(self, plans: Sequence[RunPlan], replicas: Replicas) -> None:
        self._plans = plans
        self._replicas = replicas
        self._apps: list[str] = []
        self._owns_ray = False
        self._owns_serve = False

    def start(
        self,
        address: str | None,
        loading: Loading,
        batching: Batching,
        say: Callable[[str], None],
    ) -> dict[str, Handles]:
        """Start or join Ray, and the replicas; run → half → whom to ask.

        Raises:
            UserError: there is no such cluster, or no room on it; a replica doesn't start.
        """
        say("starting a Ray on this machine" if address is None else "joining the Ray cluster")
        hush_ray()
        self._owns_ray = address is None
        join_ray(self._num_cpus(), address, say)
        try:
            self._check_room(loading)
            self._owns_serve = not _is_serve_running()
            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            quiet = {"log_level": "WARNING", "enable_access_log": False}
            serve.start(proxy_location=ProxyLocation.Disabled, logging_config=quiet)
            say("loading the models in their replicas")
            return self._deploy(loading, batching)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Take the replicas away, and Ray with them where this process started it."""
        if not ray.is_initialized():
            return
        with suppress(Exception):  # the cluster may be gone
            for app in self._apps if not self._owns_serve else ():
                serve.delete(app)
            if self._owns_serve:
                serve.shutdown()
        ray.shutdown()

    def _num_cpus(self) -> float:
        return math.ceil(sum(own.num_ranks * own.each["CPU"] for own in self._demands(gpus=False)))

    def _demands(self, gpus: bool) -> list[Demand]:
        found = []
        for plan in self._plans:
            for stage, own in plan.blueprint.stages.items():
                each = {"CPU": own.cpus} | ({"GPU": 1.0} if gpus else {})
                found.append(Demand(stage.name, self._replicas.of(stage.reads), each))
        return found

    def _check_room(self, loading: Loading) -> None:
        demands, supplies = self._demands(_wants_gpus(loading)), node_supplies()
        for ever in (True, False):
            if (mistake := refusal(demands, supplies, ever)) is not None:
                raise UserError([mistake])

    def _deploy(self, loading: Loading, batching: Batching) -> dict[str, Handles]:
        own = secrets.token_hex(4)
        resources = iter(self._demands(_wants_gpus(loading)))
        handles: dict[str, Handles] = {}
        for plan in self._plans:
            bound: Any = None
            for half in plan.halves:  # each is told of the one before, so that they are one app
                bound = self._bound(plan, half, next(resources).each, loading, batching, bound)
            app = f"tsarch-{own}-{plan.name}"
            self._apps.append(app)
            try:
                serve.run(bound, name=app, route_prefix=None)
            except (RuntimeError, RayServeException) as error:
                what = f"its replicas don't start: {one_line(error)}"
                raise UserError.single(f"run {plan.name}", what) from None
            handles[plan.name] = {
                reads: serve.get_deployment_handle(half, app) for half, reads in plan.halves.items()
            }
        return handles

    def _bound(
        self,
        plan: RunPlan,
        half: str,
        each: Resources,
        loading: Loading,
        batching: Batching,
        other: Any,
    ) -> Any:
        """A half's deployment."""
        reads = plan.halves[half]
        keeps = reads == "contexts"
        deployment = serve.deployment(
            Replica,
            name=half,
            num_replicas=self._replicas.of(reads),
            max_ongoing_requests=_MANY,
            ray_actor_options={"num_cpus": each["CPU"], "num_gpus": each.get("GPU", 0)},
            health_check_period_s=_HEALTH_PERIOD_S,
            graceful_shutdown_timeout_s=_SHUTDOWN_S,
            **({"request_router_config": _BY_DOCUMENT} if keeps else {}),
        )
        return deployment.bind(
            str(plan.folder.absolute()),
            half,
            plan.models(reads),
            loading,
            batching,
            self._replicas.cache_bytes if keeps else 0,
            self._threads(each["CPU"]),
            other,
        )

    def _threads(self, cpus: float) -> int:
        """Cores shared out on this machine; on a cluster what Ray reserves."""
        if self._owns_ray:
            num_replicas = sum(own.num_ranks for own in self._demands(gpus=False))
            return max(1, len(os.sched_getaffinity(0)) // num_replicas)
        return max(1, int(cpus))


def _wants_gpus(loading: Loading) -> bool:
    has = ray.cluster_resources().get("GPU", 0) > 0
    return loading.device == "cuda" or (loading.device == "auto" and has)


def _is_serve_running() -> bool:
    named = ray.util.list_named_actors(all_namespaces=True)
    return any(own["name"] == "SERVE_CONTROLLER_ACTOR" for own in named)
