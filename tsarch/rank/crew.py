"""The crew: all ranks of both stages, as the driver sees them.

A driver has two ways to a crew. While it trains, it sends commands (`pacer.py`) and hears events
of what was done, in the same order; a few commands are under way at a time. Between that, it asks
all ranks something (`api.py`) and waits for the answers.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from tsarch.blueprint import Blueprint
from tsarch.checkpoint.cut import Cut, Resume, Stall, Written
from tsarch.config import Mode
from tsarch.errors import RankFailedError
from tsarch.rank.api import Meeting, ProcessApi, RankApi
from tsarch.rank.pacer import Advance, Pace, Pacer, Situation, Stop, TakeCut
from tsarch.rank.rank_stats import RankStats
from tsarch.rank.supply import Supply
from tsarch.records import Predictions, Survey, TickReport, Windows
from tsarch.specs import RunnerSpec
from tsarch.timings import TIMINGS
from tsarch.topology import Stage
from tsarch.written import Generated, Passes, Texts

P = ParamSpec("P")
A = TypeVar("A")


@dataclass(frozen=True, eq=False)
class Pending(Generic[A]):
    """Answers of all ranks that may not be there yet."""

    handles: list[Any]
    """By rank; what it is, a crew knows."""


@dataclass(frozen=True)
class Reports:
    """Ticks were run."""

    num_ticks: int
    reports: list[TickReport]


@dataclass(frozen=True)
class CutTaken:
    """A checkpoint was taken; the reports of all ticks before it have been given out."""

    taken: TakeCut
    stalls: list[Stall]


@dataclass(frozen=True)
class Draining:
    """Ranks will be taken away soon."""

    reason: str
    nodes: frozenset[str] = frozenset()
    """Ids of their nodes, if there is room for them elsewhere."""


Event = Reports | CutTaken | Draining


Kept = tuple[int, Mapping[str, tuple[str, ...]]]
"""Step of a cut in memory, and where it is (see `Cut`)."""


@dataclass(frozen=True)
class Mended:
    """A crew that is whole again."""

    cut: Kept | None
    """The last cut in memory; None: no memory has a whole one, and all models are as training
    starts."""
    num_replaced: int
    """Ranks in new processes."""
    stages: tuple[Stage, ...]
    """Those whose engines were built anew."""


class Crew(ABC):
    """All ranks. Only numbers and label ids come back from them."""

    def __init__(self, blueprint: Blueprint, pace: Pace) -> None:
        self.blueprint = blueprint
        """With the topology that the crew has: after a failure there may be fewer replicas."""
        self.topology = blueprint.topology
        self.pace = pace
        self._queue: deque[tuple[Advance | TakeCut, Pending[Any]]] = deque()
        self._asked: Pending[Written | None] | None = None
        self.command_s = 0.0
        """What the last command took."""

    @abstractmethod
    def submit(
        self,
        method: Callable[Concatenate[RankApi, P], A],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> Pending[A]:
        """Ask all ranks, without waiting."""

    @abstractmethod
    def collect(self, pending: Pending[A]) -> list[A]:
        """Wait for the answers, by rank; the first rank that fails ends the waiting for all.

        Raises:
            UserError, ReplicaDriftError: as a rank raised it.
            RankFailedError: names the rank, with the end of its log.
        """

    @abstractmethod
    def is_done(self, pending: Pending[Any]) -> bool:
        """Whether all answers are there."""

    @abstractmethod
    def forget(self, pending: Pending[Any]) -> None:
        """Nobody wants these answers any more."""

    @abstractmethod
    def supply(self, runner: RunnerSpec) -> Supply:
        """Devices and cores that the run may take, those that it holds already among them."""

    @abstractmethod
    def close(self) -> None:
        """End all that the crew started."""

    def mend(self, failure: RankFailedError) -> Mended | None:
        """Replace the ranks that have failed and let the others go on in their processes; all are
        ready for `begin` then. None: that can't be done, only starting anew.

        Raises:
            RankFailedError: meanwhile others have failed.
        """
        return None

    @property
    def ending(self) -> str | None:
        """Why the run must save a checkpoint and end; None: it needn't."""
        return None

    @property
    def kept_cuts(self) -> tuple[int, ...]:
        """Steps of older cuts in memory that ranks must leave where they are (see `Cut.kept`)."""
        return ()

    def copy_cut(self, step: int) -> None:  # noqa: B027 - on one host there is nothing to do
        """All ranks have taken a cut: bring copies to other hosts beside the training, if those of
        an older one have arrived."""

    def notice(self) -> Draining | None:
        """What the ranks' hosts say that can't wait; each thing once."""
        return None

    def ask(
        self,
        method: Callable[Concatenate[RankApi, P], A],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> list[A]:
        """Ask all ranks and wait for the answers (see `collect`)."""
        return self.collect(self.submit(method, *arguments, **keywords))

    # While it trains: commands and events.

    def begin(self, start: int, stop: int, resume: Resume | None = None) -> int:
        """Take up the steps `start` … `stop` − 1, or what is left of them on `resume`; the number
        of ticks."""
        return self.ask(RankApi.begin, start, stop, resume)[0]

    def send(self, command: Advance | TakeCut) -> None:
        """Have all ranks do something, after what they were told before."""
        pending: Pending[Any]
        match command:
            case Advance(num_ticks):
                pending = self.submit(RankApi.advance, num_ticks)
            case TakeCut(cut):
                cut = replace(cut, kept=self.kept_cuts)
                pending = self.submit(RankApi.take_checkpoint, cut)
        self._queue.append((command, pending))

    @property
    def num_queued(self) -> int:
        """Commands whose events have not come."""
        return len(self._queue)

    def events(self) -> Iterator[Event]:
        """Wait for what was commanded, one event a command, until nothing is left."""
        while self._queue:
            command, pending = self._queue.popleft()
            answers = self.collect(pending)
            match command:
                case Advance(num_ticks):
                    yield Reports(num_ticks, [report for own in answers for report in own])
                case TakeCut():
                    yield CutTaken(command, answers)

    def drop_commands(self) -> None:
        """Want no more events."""
        while self._queue:
            self.forget(self._queue.popleft()[1])

    def want_nothing(self) -> None:
        """Nothing that ranks were asked before counts any more: they are others now."""
        self._queue.clear()
        self._asked = None

    def train(
        self, start: int, stop: int, resume: Resume | None = None
    ) -> Iterator[list[TickReport]]:
        """Train on some steps, without checkpoints; reports as they come in."""
        pacer = Pacer(self.pace)
        first = start if resume is None else resume.tick
        pacer.begin(0, first, stop, self.begin(start, stop, resume))
        for event in drive(self, pacer, Situation, lambda cut: False):
            if isinstance(event, Reports):
                yield event.reports

    def take_checkpoint(self, cut: Cut) -> list[Stall]:
        """Take a checkpoint now."""
        return self.ask(RankApi.take_checkpoint, cut)

    def checkpoint_written(self, wait: bool) -> list[Written] | None:
        """What all ranks have written of the checkpoint under way; None: not all of it yet, and
        without `wait` a later call has the answer."""
        asked, self._asked = self._asked, None
        if wait:
            if asked is not None:
                self.collect(asked)
            return self.ask(RankApi.checkpoint_written)
        if asked is None:
            asked = self.submit(RankApi.checkpoint_so_far)
        if not self.is_done(asked):
            self._asked = asked
            return None
        written = [own for own in self.collect(asked) if own is not None]
        return written if len(written) == len(asked.handles) else None

    # Questions whose answers are put together.

    def survey(self, split: str, windows: Windows | None = None) -> list[Survey]:
        """The teachers' predictions; every teacher rank gives the words of its contexts. Or the
        students' scores; every student rank gives the words of its `windows`."""
        return [own for own in self.ask(RankApi.survey, split, windows) if own is not None]

    def evaluate(
        self,
        split: str,
        joint_weights: list[float],
        windows: Windows | None = None,
        undecided: bool = False,
    ) -> list[Predictions]:
        """Predict a split; every student rank gives the words of its windows."""
        found = self.ask(RankApi.evaluate, split, joint_weights, windows, undecided)
        return [own for own in found if own is not None]

    def generate(self, split: str, mode: Mode, joint_weight: float) -> Texts:
        """Generate the texts of a split; every student rank gives those of its contexts."""
        return self.write(split, [mode], joint_weight)[mode].texts

    def write(
        self, split: str, modes: Sequence[Mode], joint_weight: float
    ) -> dict[Mode, Generated]:
        """As `generate`, of each mode, and what it took."""
        shares = self.ask(RankApi.generate, split, modes, joint_weight)
        return {mode: _together([own[mode] for own in shares]) for mode in modes}

    def stats(self) -> dict[Stage, list[RankStats]]:
        """Numbers of the ranks of each stage."""
        stats = self.ask(RankApi.stats)
        return {
            s: [own for own in stats if s.value in own.stage_parameters]
            for s in self.topology.graph.stages
        }


class CrewOfProcesses(Crew):
    """Ranks in processes of their own, which have to meet and to build before they are ranks."""

    @abstractmethod
    def submit(
        self,
        method: Callable[Concatenate[ProcessApi, P], A],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> Pending[A]:
        """See `Crew`."""

    def ask(
        self,
        method: Callable[Concatenate[ProcessApi, P], A],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> list[A]:
        """See `Crew`."""
        return self.collect(self.submit(method, *arguments, **keywords))

    def join(self, stages: Collection[Stage] | None = None) -> None:
        """Let the ranks form their process groups, all or those of both stages and of `stages`."""
        names = self.topology.stages if stages is None else stages
        with TIMINGS.during("ranks meet"):
            offers = self.ask(ProcessApi.offer_addresses, tuple(stage.value for stage in names))
            addresses = {name: place for own in offers for name, place in own.items()}
            self.ask(ProcessApi.join, Meeting(addresses))

    def build(self, blueprint: Blueprint) -> None:
        """Build models and engines on all ranks; again, for another blueprint, if wanted."""
        self.blueprint = blueprint
        with TIMINGS.during("ranks read the data and build models"):
            self.ask(ProcessApi.build, blueprint)


def drive(
    crew: Crew,
    pacer: Pacer,
    look: Callable[[], Situation],
    prepare: Callable[[Cut], bool],
) -> Iterator[Event]:
    """Train until the pacer says stop; events as they come.

    Args:
        look: what the pacer is to know.
        prepare: makes the place that a cut is to be written to; False: there is none.
    """
    try:
        while True:
            notice = crew.notice()
            if notice is not None:
                yield notice
            _fill(crew, pacer, look, prepare)
            started_s = time.perf_counter()
            event = next(crew.events(), None)
            if event is None:
                return
            yield event
            if isinstance(event, Reports):
                crew.command_s = time.perf_counter() - started_s
                pacer.done(event.num_ticks, crew.command_s)
    finally:  # the caller may stop before the end
        crew.drop_commands()


def _fill(
    crew: Crew,
    pacer: Pacer,
    look: Callable[[], Situation],
    prepare: Callable[[Cut], bool],
) -> None:
    """Send commands until enough are under way; after a cut always some ticks too."""
    wanted = crew.pace.num_queued
    while crew.num_queued < wanted:
        command = pacer.next(look())
        if isinstance(command, TakeCut):
            if prepare(command.cut):
                crew.send(command)
            command = pacer.next(look())
        if isinstance(command, Stop):
            return
        crew.send(command)


def _together(shares: Sequence[Generated]) -> Generated:
    """The texts of all ranks."""
    texts = {context: tokens for own in shares for context, tokens in own.texts.items()}
    return Generated(texts, sum((own.passes for own in shares), Passes()))
