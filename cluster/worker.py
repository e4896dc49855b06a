"""The actor of one rank. Torch, DeepSpeed and the models live here, never in the driver."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import ray

from tsarch.checkpoint.cut import Cut, Resume, Stall, Written
from tsarch.cluster.status import Status, note_file, own_status, started_line
from tsarch.config import Config, Mode
from tsarch.rank.activity import Activity
from tsarch.records import PackedReport, Predictions, Survey, Texts, Windows, pack_reports
from tsarch.topology import Stage, Topology

if TYPE_CHECKING:
    from tsarch.cluster.agreement import Facts
    from tsarch.cluster.probe import Request
    from tsarch.parallel.groups import MeetingPoint
    from tsarch.rank.rank import Rank
    from tsarch.rank.rank_stats import RankStats

_CROSS_GROUPS = ("link", "tied")
"""Groups of all ranks of both stages; each stage has one of its own besides."""
_ORPHAN_S = 60.0
"""A rank that its driver hasn't asked for so long, and the time for hangs, ends by itself."""

WATCH = "watch"
"""The concurrency group of the calls that are answered while a rank works."""


M = TypeVar("M", bound=Callable[..., Any])


def _command(method: M) -> M:
    """A command of the driver's, which `status` tells of while it lasts."""

    @wraps(method)
    def wrapped(self: Worker, *args: Any, **kwargs: Any) -> Any:
        with self.activity.during(method.__name__):
            return method(self, *args, **kwargs)

    return cast(M, wrapped)


def meanwhile(method: M) -> M:
    """A call that is answered while a command lasts."""
    return cast(M, ray.method(concurrency_group=WATCH)(method))


@dataclass(frozen=True)
class Meeting:
    """Where the process groups meet: at each group's first rank."""

    addresses: dict[str, tuple[str, int]]
    """Group (teacher, student, link, tied) → host, port."""


class Worker:
    """One rank: one device, one stage. Methods are called by `RayCrew` alone, on all ranks in
    the same order; those that mention collectives block until every rank takes part. Those of the
    concurrency group `WATCH` are answered meanwhile."""

    def __init__(self, config: Config, rank: int, threads: int, log_file: str) -> None:
        _write_output_to(Path(log_file))
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        self.activity = Activity(note_file(Path(log_file)))
        self._asked_s = time.monotonic()
        patience_s = config.failure.hang_timeout_s + _ORPHAN_S
        threading.Thread(target=self._end_alone, args=(patience_s,), daemon=True).start()
        self._config = config
        self._threads = threads
        self._topology = Topology.from_config(config.topology)
        self._rank_number = rank
        print(started_line(rank), flush=True)
        self._stage, self._stage_rank = self._topology.place(rank)
        self._groups: dict[str, Any] = {}
        self._meeting_points: dict[str, MeetingPoint] = {}
        self._rank: Rank | None = None

    @meanwhile
    def status(self) -> Status:
        """What this rank does now."""
        self._asked_s = time.monotonic()
        return own_status(self.activity)

    @meanwhile
    def stacks(self) -> str:
        """Where every Python thread of this process is."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        return "\n".join(
            f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
            for ident, frame in sys._current_frames().items()
            if ident != threading.get_ident()
        )

    @_command
    def probe(self, request: Request) -> Facts:
        """What this process and its host are (no collective; nothing is built yet)."""
        from tsarch.cluster.probe import gather_facts

        return gather_facts(request)

    def wall_clock(self) -> float:
        """Seconds since 1970 by this host's clock."""
        return time.time()

    def offer_addresses(self) -> dict[str, tuple[str, int]]:
        """Addresses on this host of the groups whose first rank this is."""
        from tsarch.parallel.groups import MeetingPoint

        names = [self._stage.value] if self._stage_rank == 0 else []
        names += _CROSS_GROUPS if self._rank_number == 0 else ()
        self._meeting_points = {name: MeetingPoint(_own_host()) for name in names}
        return {name: astuple(point.address) for name, point in self._meeting_points.items()}

    @_command
    def join(self, meeting: Meeting) -> None:
        """Import the heavy libraries and join the stage's world and the cross-stage groups."""
        import torch

        from tsarch.parallel.groups import (
            Address,
            choose_device,
            new_cross_group,
            set_stage_environment,
            use_interface_of,
        )
        from tsarch.stage.deepspeed_engine import start_stage_world

        torch.set_num_threads(self._threads)
        topology = self._config.topology
        device = choose_device(topology.device)
        use_interface_of(_own_host())
        addresses = {name: Address(*place) for name, place in meeting.addresses.items()}
        replicas = self._topology.replicas(self._stage)
        set_stage_environment(addresses[self._stage.value], self._stage_rank, replicas)
        start_stage_world(device, topology.timeout_s)
        for name in _CROSS_GROUPS:
            self._groups[name] = new_cross_group(
                addresses[name],
                self._rank_number,
                self._topology.num_ranks,
                device,
                topology.timeout_s,
            )

    @_command
    def build(self, config: Config) -> None:
        """Read the data and build models and engines (all ranks: the table is broadcast).

        May be called again with another config of the same topology.
        """
        from torch import nn

        from tsarch.parallel.groups import choose_device
        from tsarch.prepare import prepare_data
        from tsarch.rank.rank import Rank, Wiring
        from tsarch.stage.deepspeed_config import stage_extra
        from tsarch.stage.deepspeed_engine import DeepSpeedEngine, stage_construction
        from tsarch.stage.engine import Engine, OptimizerSpec

        topology = config.topology
        device = choose_device(topology.device)
        own = topology.teacher if self._stage is Stage.TEACHER else topology.student
        extra = stage_extra(config, self._stage, pin_memory=device.type == "cuda")

        def make_engine(stage: Stage, module: nn.Module, spec: OptimizerSpec) -> Engine:
            return DeepSpeedEngine(
                module,
                spec,
                config.precision,
                own.zero_stage,
                self._topology.replicas(stage),
                config.schedule.micro_batches,
                device,
                extra,
            )

        wiring = Wiring(
            self._topology,
            ((self._stage, self._stage_rank),),
            device,
            make_engine,
            self._groups["link"],
            self._groups["tied"],
            stage_construction(
                config.precision,
                own.zero_stage,
                self._topology.replicas(self._stage),
                config.schedule.micro_batches,
                extra,
            ),
            self.activity,
        )
        self._rank = Rank(config, prepare_data(config), wiring)

    @_command
    def begin(self, start: int, stop: int, resume: Resume | None) -> int:
        """See `Rank.begin` (collective on `resume`)."""
        return self.rank.begin(start, stop, resume)

    @_command
    def take_checkpoint(self, cut: Cut) -> Stall:
        """See `Rank.take_checkpoint` (collective)."""
        return self.rank.take_checkpoint(cut)

    @_command
    def checkpoint_written(self, wait: bool) -> Written | None:
        """See `Rank.checkpoint_written`."""
        return self.rank.checkpoint_written(wait)

    @meanwhile
    def checkpoint_so_far(self) -> Written | None:
        """`checkpoint_written` without waiting, while the rank trains."""
        return self.rank.checkpoint_written(wait=False)

    @_command
    def advance(self, num_ticks: int) -> list[PackedReport]:
        """See `Rank.advance` (collective)."""
        return pack_reports(self.rank.advance(num_ticks))

    @_command
    def survey(self, split: str) -> Survey | None:
        """See `Rank.survey` (collective)."""
        return self.rank.survey(split)

    @_command
    def evaluate(
        self, split: str, joint_weights: list[float], windows: Windows | None = None
    ) -> Predictions | None:
        """See `Rank.evaluate` (collective)."""
        return self.rank.evaluate(split, joint_weights, windows)

    @_command
    def generate(self, split: str, mode: Mode, joint_weight: float) -> Texts:
        """See `Rank.generate` (collective)."""
        return self.rank.generate(split, mode, joint_weight)

    @_command
    def check_replicas(self, step: int) -> None:
        """See `Rank.check_replicas` (collective)."""
        self.rank.check_replicas(step)

    @_command
    def save(self, folder: Path) -> None:
        """See `Rank.save` (collective)."""
        self.rank.save(folder)

    @_command
    def load(self, folder: Path) -> None:
        """See `Rank.load` (collective)."""
        self.rank.load(folder)

    @_command
    def stats(self) -> RankStats:
        """See `Rank.stats` (collective)."""
        return self.rank.stats()

    def set_threads(self, threads: int) -> None:
        """Compute with so many CPU threads from now on."""
        import torch

        torch.set_num_threads(threads)

    def perturb_table(self, amount: float) -> None:
        """Fault injection for tests, see `Rank.perturb_table`."""
        self.rank.perturb_table(amount)

    def _end_alone(self, patience_s: float) -> None:
        """End this process when its driver is lost. Ray does so too, but not on a node that is cut
        off, or later."""
        while time.monotonic() - self._asked_s < patience_s:
            time.sleep(1.0)
        print(f"the driver hasn't asked for {patience_s:.0f} s: this rank ends", flush=True)
        os._exit(1)

    @property
    def rank(self) -> Rank:
        """The rank that `build` made."""
        assert self._rank is not None, "build comes first"
        return self._rank


def _own_host() -> str:
    import ray

    return str(ray.util.get_node_ip_address())


def _write_output_to(log_file: Path) -> None:
    """Send this process's stdout and stderr to a file of the run's, C libraries' included."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    faulthandler.enable()  # a crash in native code leaves its stack there
