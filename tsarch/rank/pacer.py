"""Where a run is, and what its ranks do next. Pure: no torch, no clock, no ranks.

The driver asks the pacer for commands, gives them to the crew, and hears events of what was done
(`crew.py`). Nobody else on the driver's side knows a tick.
"""

from __future__ import annotations

from dataclasses import dataclass

from tsarch.blueprint import Blueprint
from tsarch.checkpoint.cut import Cut

_MOST_FOR_CUTS = 0.02
"""Share of the time that cuts in memory may take."""


def keeps_cuts(blueprint: Blueprint) -> bool:
    """Whether ranks keep cuts in memory: where they can go back to them."""
    can_go_back = not blueprint.runner.is_one_process and blueprint.failure.max_restarts > 0
    return can_go_back and blueprint.checkpoint.in_memory_every_steps is not None


@dataclass(frozen=True)
class Advance:
    """Run the next ticks."""

    num_ticks: int


@dataclass(frozen=True)
class TakeCut:
    """Take a checkpoint, or a cut that is only kept in memory, between two ticks."""

    cut: Cut
    epoch: int = 0
    """Epoch that it is taken in, from 0."""
    epoch_done: bool = False
    """Whether the epoch is over, its validation too."""


@dataclass(frozen=True)
class Stop:
    """Nothing more for now: all ticks are commanded, or the run is to end early."""


Command = Advance | TakeCut | Stop


@dataclass(frozen=True)
class CutRules:
    """When checkpoints are due, as `checkpoint` in the config."""

    url: str
    every_steps: int | None = None
    every_s: float | None = None
    at_epochs: bool = False
    in_memory_every_steps: int | None = None
    """Steps between two cuts that are kept in memory alone; None: there are no such cuts."""


@dataclass(frozen=True)
class Situation:
    """What the driver sees when it asks for a command."""

    now_s: float = 0.0
    """Any clock's time."""
    is_interrupted: bool = False
    """Whether the run is to save and end."""
    is_writing: bool = False
    """Whether a checkpoint is under way: the clock then starts no other, to give a slow disk
    time."""


@dataclass
class Pace:
    """How a crew is driven."""

    num_queued: int
    """Commands that are under way at a time; with two, ranks never wait for the driver."""
    max_ticks: int
    """Most ticks of one command: what a driver of short steps waits for at most."""
    target_s: float
    """What a command should take: live numbers, few calls."""


class Pacer:
    """The place of a run. A tick is a beat of the schedule; tick k begins with the teacher's step
    k, and an epoch may have a few more ticks than steps."""

    def __init__(self, pace: Pace, rules: CutRules | None = None, now_s: float = 0.0) -> None:
        self.epoch = 0
        self.tick = 0
        """The next that will be commanded."""
        self.is_stopping = False
        """Whether the run ends early, once what is commanded is done."""
        self._pace = pace
        self._rules = rules
        self._num_ticks = 1
        self._first, self._last, self._end = 0, 0, 0
        self._last_cut = self._last_kept = -1
        self._last_cut_s = self._last_kept_s = now_s
        self._cost_s = 0.0
        self._cut_soon = False

    def resumed_at(self, step: int, in_memory: bool = False) -> None:
        """The run goes on from the checkpoint of `step`, or from the cut that is `in_memory`."""
        if in_memory:
            self._last_kept = step
        else:
            self._last_cut = step

    def begin(self, epoch: int, first: int, stop: int, num_ticks: int) -> None:
        """The next commands are for `epoch`: `num_ticks` ticks from `first` on, in which the
        teacher does its steps up to `stop` − 1."""
        self.epoch = epoch
        self.tick = self._first = first
        self._last = stop
        self._end = first + num_ticks

    def next(self, now: Situation) -> Command:
        """What comes next in this epoch."""
        if self.is_stopping or self.tick >= self._end:
            return Stop()
        if self.tick < self._last:
            if now.is_interrupted:
                self.is_stopping = True
                return Stop() if self.tick == self._last_cut else self._take_cut(now)
            if self.tick not in (self._first, self._last_cut) and self._is_due(now):
                return self._take_cut(now)
            if self.tick != self._last_kept and self._is_due_in_memory(now):
                return self._take_cut(now, in_memory=True)
        num_ticks = min(self._num_ticks, self._end - self.tick)
        for every in self._intervals:
            num_ticks = min(num_ticks, every - self.tick % every)
        self.tick += num_ticks
        return Advance(num_ticks)

    def end_epoch(self, now: Situation) -> TakeCut | None:
        """The cut after an epoch and its validation, if one is due."""
        self.is_stopping = now.is_interrupted
        self.tick = self._last
        if self._rules is None or self.tick == self._last_cut:
            return None
        if self.is_stopping or self._rules.at_epochs or self._is_due(now):
            return self._take_cut(now, epoch_done=True)
        if self._rules.in_memory_every_steps is not None and self.tick != self._last_kept:
            return self._take_cut(now, epoch_done=True, in_memory=True)
        return None

    def cut_cost(self, stall_s: float) -> None:
        """A cut has kept ranks from training for so long."""
        self._cost_s = stall_s

    def cut_soon(self) -> None:
        """A cut is due between the next two commands."""
        self._cut_soon = True

    def done(self, num_ticks: int, elapsed_s: float) -> None:
        """A command of so many ticks took so long: the next may be longer or shorter."""
        wanted = self._pace.target_s * num_ticks / max(elapsed_s, 1e-6)
        limit = min(2 * self._num_ticks, self._pace.max_ticks)
        self._num_ticks = max(1, min(round(wanted), limit))

    def _is_due(self, now: Situation) -> bool:
        rules = self._rules
        if rules is None:
            return False
        if self._cut_soon:
            return True
        if rules.every_steps is not None and self.tick % rules.every_steps == 0:
            return True
        waited_s = now.now_s - self._last_cut_s
        return rules.every_s is not None and waited_s >= rules.every_s and not now.is_writing

    def _is_due_in_memory(self, now: Situation) -> bool:
        """At the run's first tick, and then every few steps, as long as that takes a small share of
        the time."""
        if self._rules is None or self._rules.in_memory_every_steps is None:
            return False
        if self._last_kept < 0:
            return True
        every = self._rules.in_memory_every_steps
        waited_s = now.now_s - self._last_kept_s
        return self.tick % every == 0 and self._cost_s <= _MOST_FOR_CUTS * waited_s

    @property
    def _intervals(self) -> list[int]:
        """Of cuts, in steps: where they may be due commands end."""
        rules = self._rules
        found = () if rules is None else (rules.every_steps, rules.in_memory_every_steps)
        return [every for every in found if every is not None]

    def _take_cut(
        self, now: Situation, epoch_done: bool = False, in_memory: bool = False
    ) -> TakeCut:
        assert self._rules is not None, "nobody said where checkpoints go"
        self._last_kept, self._last_kept_s = self.tick, now.now_s
        if in_memory:
            return TakeCut(Cut(None, self.tick), self.epoch, epoch_done)
        self._last_cut, self._last_cut_s = self.tick, now.now_s
        self._cut_soon = False
        return TakeCut(Cut(self._rules.url, self.tick), self.epoch, epoch_done)
