"""The crew on Ray: one actor a rank, in one placement group. The driver only gives commands and
collects numbers; tensors go from rank to rank."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tsarch.checkpoint.cut import Cut, Cuts, Resume, Stall, Written
from tsarch.cluster.joining import join_ray
from tsarch.cluster.nodes import nodes_of, stop_processes
from tsarch.cluster.placement import place, rank_bundles, supply_on_cluster
from tsarch.cluster.probe import check_ranks
from tsarch.cluster.rank_calls import Calls, log_file
from tsarch.cluster.recovery import settle
from tsarch.cluster.status import note_file
from tsarch.cluster.watch import Watch
from tsarch.cluster.worker import WATCH, Meeting, Worker
from tsarch.config import Config, Mode, TopologyConfig
from tsarch.rank.rank_stats import RankStats
from tsarch.rank.supply import Supply
from tsarch.records import Predictions, Survey, Texts, TickReport, Windows, unpack_reports
from tsarch.topology import STAGES, Stage, Topology, stage_topology

if TYPE_CHECKING:
    from tsarch.planning.capacity import RankNeed

MAX_CHUNK_TICKS = 256
"""Most ticks that ranks run per call: what a driver of short steps waits for at most."""
_CHUNK_TARGET_S = 0.5
_CHUNK_TARGET_PER_RANK_S = 0.01  # a call to a rank costs the driver about 0.5 ms


class _Queued(NamedTuple):
    """Calls to all ranks that have been made."""

    tick: int
    """The next tick when they come to them."""
    num_ticks: int
    """Ticks that they run; 0: they take a checkpoint."""
    references: list[Any]


class RayCrew:
    """All ranks of a run on a Ray cluster."""

    def __init__(
        self,
        config: Config,
        workers: Sequence[Any],
        placement: PlacementGroup,
        log_folder: Path,
    ) -> None:
        self.config = config
        """With the topology that the ranks have."""
        self.topology = Topology.from_config(config.topology)
        self._workers = list(workers)
        self._placement = placement
        self._log_folder = log_folder
        self.max_chunk_ticks = MAX_CHUNK_TICKS
        self._chunk_ticks = 1
        self._asked: list[Any] | None = None
        nodes = nodes_of(placement, self.topology.num_ranks)
        self._watch = Watch(workers, nodes, config.failure.hang_timeout_s)
        self.calls = Calls(self._workers, self.topology, self._watch, log_folder)

    @classmethod
    def start(
        cls,
        config: Config,
        address: str | None,
        log_folder: Path,
        say: Callable[[str], None],
        worker: type = Worker,
        needs: Mapping[Stage, RankNeed] | None = None,
        restarted: bool = False,
        avoid: frozenset[str] = frozenset(),
    ) -> Self:
        """Join the Ray at `address` (None: start one here), place the ranks, let them join each
        other and build.

        Args:
            worker: class of the ranks' actors; another one than `Worker` only to measure or test
                the driver.
            needs: memory of a rank of each stage, to be compared with what is free; None: not.
            restarted: after a failure, when nodes may be missing: wait for them, then do with
                fewer replicas if the config allows it (see `config` of the crew).
            avoid: ids of nodes that no rank may be placed on.

        Raises:
            UserError: no such cluster, it can't hold the ranks, or they don't agree on versions,
                devices, memory, shared folders, data or time.
            RankFailedError: a rank failed.
        """
        topology = Topology.from_config(config.topology)
        say("starting a Ray on this machine" if address is None else "joining the Ray cluster")
        _hush_ray()
        join_ray(config.topology, address, say)
        try:
            if restarted:
                config = settle(config, avoid, say)
                topology = Topology.from_config(config.topology)
            placement = place(config, avoid, restarted)
        except BaseException:
            ray.shutdown()
            raise
        workers = _start_workers(config, topology, placement, log_folder, address is None, worker)
        crew = cls(config, workers, placement, log_folder)
        try:
            say(f"{topology.num_ranks} ranks are importing torch and DeepSpeed")
            check_ranks(crew.calls.call, config, log_folder, needs)
            crew.join()
            say("building models and engines on the ranks")
            crew.build(config)
        except BaseException:
            crew.close()
            raise
        return crew

    def join(self) -> None:
        """Let the ranks form their process groups."""
        offers = self.calls.call("offer_addresses")
        addresses = {name: place for own in offers for name, place in own.items()}
        self.calls.call("join", Meeting(addresses))

    def build(self, config: Config) -> None:
        """Build models and engines on all ranks; again, for another config, if wanted."""
        self.calls.call("build", config)

    def train(
        self, start: int, stop: int, resume: Resume | None = None, cuts: Cuts | None = None
    ) -> Iterator[list[TickReport]]:
        """Train; two chunks of ticks are always queued, so ranks never wait for the driver.

        A checkpoint is a call between two chunks, the same two on every rank."""
        tick = start if resume is None else resume.tick
        end = tick + int(self.calls.call("begin", start, stop, resume)[0])
        queued: deque[_Queued] = deque()
        try:
            while queued or (tick < end and not (cuts is not None and cuts.stopping)):
                self._tell_drains(cuts)
                while len(queued) < 2 and tick < end:
                    cut = None if cuts is None else cuts.due(tick)
                    if cut is not None:
                        queued.append(_Queued(tick, 0, self.calls.submit("take_checkpoint", cut)))
                    if cuts is not None and cuts.stopping:
                        break
                    ticks = min(self._chunk_ticks, end - tick)
                    if cuts is not None:
                        ticks = min(ticks, cuts.ticks_until(tick))
                    queued.append(_Queued(tick, ticks, self.calls.submit("advance", ticks)))
                    tick += ticks
                if not queued:
                    break
                started_s = time.perf_counter()
                chunk = queued.popleft()
                results = self.calls.collect(chunk.references)
                if chunk.num_ticks == 0:
                    assert cuts is not None
                    cuts.taken(chunk.tick, results)
                    continue
                yield [report for own in results for report in unpack_reports(own)]
                self._adapt_chunk(chunk.num_ticks, time.perf_counter() - started_s)
        finally:  # the caller may stop before the end
            for chunk in queued:
                self.calls.forget(chunk.references)

    def _tell_drains(self, cuts: Cuts | None) -> None:
        """Have a checkpoint taken when nodes of this run are to be taken away."""
        new = self._watch.draining - self.calls.drained
        if cuts is not None and new:
            self.calls.drained |= new
            nodes = {self._watch.node(rank) for rank in range(self.topology.num_ranks)}
            names = sorted(node.address for node in nodes if node.node_id in new)
            cuts.save_soon(f"notice: {' and '.join(names)} will be taken from the cluster")

    def take_checkpoint(self, cut: Cut) -> list[Stall]:
        """Let every rank copy its state and write it in the background."""
        return self.calls.call("take_checkpoint", cut)

    def checkpoint_written(self, wait: bool) -> list[Written] | None:
        """What the ranks have written. Without `wait` a later call has the answer."""
        if wait:
            if self._asked is not None:
                self.calls.collect(self._asked)
            self._asked = None
            return self.calls.call("checkpoint_written", True)
        if self._asked is None:
            self._asked = self.calls.submit("checkpoint_so_far")
        done, _ = ray.wait(self._asked, num_returns=len(self._asked), timeout=0)
        if len(done) < len(self._asked):
            return None
        answers, self._asked = self.calls.collect(self._asked), None
        return None if None in answers else answers

    def survey(self, split: str) -> list[Survey]:
        """The teachers' predictions; every teacher rank gives the words of its contexts."""
        return [own for own in self.calls.call("survey", split) if own is not None]

    def evaluate(
        self, split: str, joint_weights: list[float], windows: Windows | None = None
    ) -> list[Predictions]:
        """Predict a split; every student rank gives the words of its windows."""
        found = self.calls.call("evaluate", split, joint_weights, windows)
        return [own for own in found if own is not None]

    def generate(self, split: str, mode: Mode, joint_weight: float) -> Texts:
        """Generate the texts of a split; every student rank gives those of its contexts."""
        shares = self.calls.call("generate", split, mode, joint_weight)
        return {context: tokens for own in shares for context, tokens in own.items()}

    def check_replicas(self, step: int) -> None:
        """Compare the replicas of the table now."""
        self.calls.call("check_replicas", step)

    def save(self, folder: Path) -> None:
        """Write the weights; on several nodes the folder must be a shared one."""
        self.calls.call("save", folder)

    def load(self, folder: Path) -> None:
        """Read weights on all ranks."""
        self.calls.call("load", folder)

    def stats(self) -> dict[Stage, list[RankStats]]:
        """Numbers of every rank, by stage."""
        stats = self.calls.call("stats")
        places = [self.topology.place(rank)[0] for rank in range(self.topology.num_ranks)]
        return {s: [own for own, p in zip(stats, places, strict=True) if p is s] for s in STAGES}

    def supply(self, topology: TopologyConfig) -> Supply:
        """What `topology: auto` may share out on this cluster."""
        return supply_on_cluster(topology)

    def set_threads(self, threads: int) -> None:
        """Compute with so many CPU threads on every rank from now on."""
        self.calls.call("set_threads", threads)

    def perturb_table(self, rank: int, amount: float) -> None:
        """Fault injection for tests: change one replica of the table."""
        ray.get(self._workers[rank].perturb_table.remote(amount))

    def close(self) -> None:
        """End the actors, give the resources back, and stop Ray if this run started it."""
        self._watch.stop()
        for worker in self._workers:
            ray.kill(worker, no_restart=True)
        if self.calls.has_failed:
            stop_processes(self._watch)
        for rank in range(len(self._workers)):
            note_file(log_file(self._log_folder, rank)).unlink(missing_ok=True)
        self._workers = []
        remove_placement_group(self._placement)
        ray.shutdown()

    def _adapt_chunk(self, ticks: int, elapsed_s: float) -> None:
        """Aim at chunks that take a part of a second: live numbers, few calls.

        With many ranks chunks are longer, so that calls take a twentieth of the driver's time.
        """
        target_s = max(_CHUNK_TARGET_S, _CHUNK_TARGET_PER_RANK_S * self.topology.num_ranks)
        wanted = target_s * ticks / max(elapsed_s, 1e-6)
        limit = min(2 * self._chunk_ticks, self.max_chunk_ticks)
        self._chunk_ticks = max(1, min(round(wanted), limit))


def _hush_ray() -> None:
    """Keep Ray from printing what it knows of dead processes, which `RankFailedError` says better;
    Ray has no setting for it."""
    ray._private.worker.print_to_stdstream = lambda *_, **__: None


def _start_workers(
    config: Config,
    topology: Topology,
    placement: PlacementGroup,
    log_folder: Path,
    own_ray: bool,
    worker: type,
) -> list[Any]:
    bundles = rank_bundles(config.topology)
    threads = [
        stage_topology(config.topology, topology.place(rank)[0]).threads
        or config.topology.threads
        or _default_threads(config, topology, own_ray)
        for rank in range(topology.num_ranks)
    ]
    actor = ray.remote(concurrency_groups={WATCH: 1})(worker)
    return [
        actor.options(
            num_cpus=bundles[rank]["CPU"],
            num_gpus=bundles[rank].get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement, rank),
        ).remote(config, rank, threads[rank], str(log_file(log_folder, rank)))
        for rank in range(topology.num_ranks)
    ]


def _default_threads(config: Config, topology: Topology, own_ray: bool) -> int:
    """Cores shared out on this machine; on a cluster what Ray reserves for a rank."""
    if own_ray:
        return max(1, len(os.sched_getaffinity(0)) // topology.num_ranks)
    return max(1, int(config.topology.cpus_per_rank))
