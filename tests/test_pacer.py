"""What a run's ranks are told, command by command: no ranks, no clock, tables only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tsarch.checkpoint.cut import Cut
from tsarch.rank.api import name_of
from tsarch.rank.crew import Crew, CutTaken, Draining, Pending, Reports, drive
from tsarch.rank.pacer import Advance, Command, CutRules, Pace, Pacer, Situation, Stop, TakeCut
from tsarch.topology import Topology

SLOW = Pace(num_queued=2, max_ticks=256, target_s=0.5)
URL = "checkpoints"


def cut(step: int, epoch: int = 0, epoch_done: bool = False) -> TakeCut:
    return TakeCut(Cut(URL, step), epoch, epoch_done)


def commands(pacer: Pacer, now: Callable[[Pacer], Situation] | None = None) -> Iterator[Command]:
    """All that a pacer says until it says stop."""
    while not isinstance(command := pacer.next(Situation() if now is None else now(pacer)), Stop):
        yield command


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (None, [Advance(1)] * 5),
        (CutRules(URL, at_epochs=True), [Advance(1)] * 5),
        (
            CutRules(URL, every_steps=2),
            [Advance(1), Advance(1), cut(2), Advance(1), Advance(1), Advance(1)],
        ),
        # No cut before the fifth tick, in which `overlapped` only ends what it began: the epoch's
        # end has its own. None before the first either, where the last epoch's end had it.
        (
            CutRules(URL, every_steps=1),
            [Advance(1), cut(1), Advance(1), cut(2), Advance(1), cut(3), Advance(1), Advance(1)],
        ),
    ],
)
def test_an_epoch_of_four_steps_and_five_ticks(rules, expected):
    pacer = Pacer(SLOW, rules)
    pacer.begin(0, 0, 4, 5)
    assert list(commands(pacer)) == expected
    assert pacer.tick == 5


@pytest.mark.parametrize(
    ("rules", "now", "expected"),
    [
        (CutRules(URL, at_epochs=True), Situation(), cut(4, 1, True)),
        (CutRules(URL), Situation(), None),
        (CutRules(URL, every_steps=2), Situation(), cut(4, 1, True)),
        (CutRules(URL, every_steps=3), Situation(), None),
        (CutRules(URL, every_s=9.0), Situation(now_s=9.0), cut(4, 1, True)),
        (CutRules(URL, every_s=9.0), Situation(now_s=8.0), None),
        (CutRules(URL, every_s=9.0), Situation(now_s=9.0, is_writing=True), None),
        (CutRules(URL), Situation(is_interrupted=True), cut(4, 1, True)),
    ],
)
def test_the_end_of_an_epoch(rules, now, expected):
    pacer = Pacer(SLOW, rules)
    pacer.begin(1, 2, 4, 3)
    list(commands(pacer))
    assert pacer.end_epoch(now) == expected
    assert pacer.is_stopping == now.is_interrupted
    assert pacer.end_epoch(now) is None or expected is None, "the same cut is taken once"


def in_memory(step: int, epoch_done: bool = False) -> TakeCut:
    return TakeCut(Cut(None, step), 0, epoch_done)


def test_cuts_in_memory_come_first_of_all_and_every_few_steps_and_at_the_end_of_an_epoch():
    pacer = Pacer(SLOW, CutRules(URL, every_steps=4, in_memory_every_steps=2))
    pacer.begin(0, 0, 7, 8)
    ticks = [Advance(1), Advance(1)]
    told = list(commands(pacer))
    assert told == [
        in_memory(0),
        *ticks,
        in_memory(2),
        *ticks,
        cut(4),
        *ticks,
        in_memory(6),
        *ticks,
    ]
    assert pacer.end_epoch(Situation()) == in_memory(7, epoch_done=True)
    pacer.begin(1, 7, 9, 3)
    assert pacer.next(Situation()) == Advance(1), "it was kept a moment ago"


def test_cuts_in_memory_take_a_small_share_of_the_time():
    pacer = Pacer(SLOW, CutRules(URL, in_memory_every_steps=1))
    pacer.begin(0, 0, 9, 9)
    pacer.cut_cost(0.1)  # so not more often than every 5 s
    told = list(commands(pacer, lambda p: Situation(now_s=2.0 * p.tick)))
    assert [c.cut.step for c in told if isinstance(c, TakeCut)] == [0, 3, 6]


def test_an_interrupted_run_saves_what_is_only_in_memory():
    pacer = Pacer(SLOW, CutRules(URL, in_memory_every_steps=2))
    pacer.resumed_at(2, in_memory=True)
    pacer.begin(0, 2, 4, 3)
    assert list(commands(pacer, lambda _: Situation(is_interrupted=True))) == [cut(2)]


def test_an_interrupted_run_is_cut_at_the_next_tick_and_told_no_more():
    pacer = Pacer(SLOW, CutRules(URL))
    pacer.begin(0, 0, 4, 5)
    told = list(commands(pacer, lambda p: Situation(is_interrupted=p.tick == 2)))
    assert told == [Advance(1), Advance(1), cut(2)]
    assert pacer.is_stopping


def test_an_interrupted_run_needs_no_second_checkpoint_of_the_same_step():
    pacer = Pacer(SLOW, CutRules(URL))
    pacer.resumed_at(2)
    pacer.begin(0, 2, 4, 3)
    assert list(commands(pacer, lambda _: Situation(is_interrupted=True))) == []
    assert pacer.is_stopping


def test_no_cut_while_the_last_tick_of_overlapped_runs():
    pacer = Pacer(SLOW, CutRules(URL))
    pacer.begin(0, 0, 4, 5)
    told = list(commands(pacer, lambda p: Situation(is_interrupted=p.tick == 4)))
    assert told == [Advance(1)] * 5
    assert pacer.end_epoch(Situation(is_interrupted=True)) == cut(4, 0, True)


def test_a_cut_that_is_wanted_soon_comes_once():
    pacer = Pacer(SLOW, CutRules(URL))
    pacer.begin(0, 0, 4, 4)
    assert pacer.next(Situation()) == Advance(1)
    pacer.cut_soon()
    assert list(commands(pacer)) == [cut(1), Advance(1), Advance(1), Advance(1)]


def test_the_clock_starts_no_cut_while_one_is_written():
    pacer = Pacer(SLOW, CutRules(URL, every_s=10.0), now_s=100.0)
    pacer.begin(0, 0, 9, 9)
    times = {1: (105, False), 2: (110, True), 3: (111, False), 4: (120, False), 5: (121, False)}
    told = list(commands(pacer, lambda p: Situation(*_at(times, p.tick))))
    assert [c.cut.step for c in told if isinstance(c, TakeCut)] == [3, 5]


def _at(times: dict[int, tuple[int, bool]], tick: int) -> tuple[float, bool, bool]:
    now_s, is_writing = times.get(tick, (0, False))
    return (float(now_s), False, is_writing)


@pytest.mark.parametrize(
    ("elapsed_s", "expected"),
    [
        # Twice as long at most, each time, up to the crew's limit; never less than a tick.
        (lambda ticks: 0.001 * ticks, [1, 2, 4, 8, 16, 32, 64, 128, 200, 200]),
        (lambda ticks: 0.1 * ticks, [1, 2, 4, 5, 5, 5, 5, 5, 5, 5]),
        (lambda ticks: 3.0 * ticks, [1] * 10),
    ],
)
def test_commands_get_as_long_as_they_should_take(elapsed_s, expected):
    pacer = Pacer(Pace(2, 200, 0.5))
    pacer.begin(0, 0, 10_000, 10_000)
    told = []
    for _ in expected:
        command = pacer.next(Situation())
        assert isinstance(command, Advance)
        told.append(command.num_ticks)
        pacer.done(command.num_ticks, elapsed_s(command.num_ticks))
    assert told == expected


def test_commands_end_where_a_checkpoint_is_due_and_where_the_epoch_ends():
    pacer = Pacer(Pace(2, 256, 100.0), CutRules(URL, every_steps=5))
    pacer.begin(0, 3, 12, 10)
    for _ in range(6):
        pacer.done(256, 1.0)
    assert list(commands(pacer)) == [
        Advance(2), cut(5), Advance(5), cut(10), Advance(3),
    ]  # fmt: skip


class Ranks(Crew):
    """Two ranks that note what they are told, and have it done when somebody waits for it."""

    def __init__(self, num_queued: int = 2) -> None:
        super().__init__(SimpleNamespace(topology=Topology.pair(1, 1)), Pace(num_queued, 1, 0.0))
        self.done: list[str] = []
        self.cuts: list[Cut] = []
        self.most_queued = 0
        self.notices = [Draining("soon")]

    @property
    def kept_cuts(self) -> tuple[int, ...]:
        return (1,)

    def submit(self, method: Any, *arguments: Any) -> Pending[Any]:
        self.cuts += [own for own in arguments if isinstance(own, Cut)]
        return Pending([name_of(method)] * 2)

    def collect(self, pending: Pending[Any]) -> list[Any]:
        self.most_queued = max(self.most_queued, self.num_queued)
        self.done.append(pending.handles[0])
        return [[], []]

    def is_done(self, pending: Pending[Any]) -> bool:
        return True

    def forget(self, pending: Pending[Any]) -> None:
        self.done.append(f"not {pending.handles[0]}")

    def notice(self) -> Draining | None:
        return self.notices.pop() if self.notices else None

    def supply(self, topology: Any) -> Any: ...

    def close(self) -> None: ...


def test_events_come_in_the_order_of_the_commands_and_two_ticks_are_under_way():
    ranks, pacer = Ranks(), Pacer(Ranks().pace, CutRules(URL, every_steps=2))
    pacer.begin(0, 0, 4, 4)
    events = list(drive(ranks, pacer, Situation, lambda cut: True))
    assert events == [
        Draining("soon"),
        Reports(1, []), Reports(1, []), CutTaken(cut(2), [[], []]), Reports(1, []), Reports(1, []),
    ]  # fmt: skip
    assert ranks.cuts == [Cut(URL, 2, kept=(1,))], "they are told what must stay meanwhile"
    # One is being waited for, and while ranks take a cut their next tick is commanded too.
    assert ranks.most_queued == 2
    assert ranks.num_queued == 0


def test_a_cut_that_has_no_place_is_left_out():
    ranks, pacer = Ranks(), Pacer(Ranks().pace, CutRules(URL, every_steps=2))
    pacer.begin(0, 0, 4, 4)
    list(drive(ranks, pacer, Situation, lambda cut: False))
    assert ranks.done == ["advance"] * 4


def test_commands_of_a_driver_that_stops_are_forgotten():
    ranks, pacer = Ranks(), Pacer(Ranks().pace)
    pacer.begin(0, 0, 4, 4)
    events = drive(ranks, pacer, Situation, lambda cut: True)
    next(events), next(events)
    events.close()
    assert ranks.done == ["advance", "not advance"]
