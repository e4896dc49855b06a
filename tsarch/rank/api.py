"""All that a driver may ask of a rank, typed. A crew passes these methods on by reference,
`crew.ask(RankApi.save, folder)`, so that names and arguments are checked where they are written.

Every rank is asked the same things in the same order. Methods that mention collectives block until
every rank takes part. (No torch: the driver reads this.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tsarch.blueprint import Blueprint
from tsarch.checkpoint.cut import Cut, Resume, Stall, Written
from tsarch.config import Mode
from tsarch.profiled import Profile
from tsarch.rank.rank_stats import RankStats
from tsarch.rank.status import Status
from tsarch.rank.tick_reports import TickReports
from tsarch.records import Predictions, Survey, Windows
from tsarch.written import Generated


class RankApi(Protocol):
    """What a rank does once its models are built: `Rank` is the one that does it."""

    def begin(self, start: int, stop: int, resume: Resume | None) -> int:
        """Take up the steps `start` … `stop` − 1, from their first tick on or from that of a
        checkpoint; the number of ticks. Collective on `resume`."""

    def advance(self, num_ticks: int) -> TickReports:
        """Run the next ticks of what `begin` took up (collective).

        Raises:
            ReplicaDriftError: replicas of the tied embedding differ (`embedding.check_every`).
        """

    def profile(self, folder: Path, num_ticks: int) -> None:
        """Let torch's profiler record some of the next ticks, and write its trace into an existing
        folder, which all hosts share."""

    def profiled(self) -> Profile | None:
        """End what `profile` began; what was recorded, None: nothing."""

    def take_checkpoint(self, cut: Cut) -> Stall:
        """Copy the state to host memory and start writing it (collective, between the same two
        ticks on every rank). The one before must have been written."""

    def checkpoint_written(self) -> Written:
        """Wait until the checkpoint under way is written; what was written."""

    def checkpoint_so_far(self) -> Written | None:
        """`checkpoint_written` without waiting, while the rank trains; None: not all yet."""

    def survey(self, split: str, windows: Windows | None = None) -> Survey | None:
        """The teacher's predictions of a split, before windows are chosen, or the student's scores
        of the words of `windows` (collective); None of ranks without that model."""

    def evaluate(
        self,
        split: str,
        joint_weights: list[float],
        windows: Windows | None,
        undecided: bool = False,
    ) -> Predictions | None:
        """Predict a split; `windows`: in place of its own; `undecided`: scores, not what they mean
        (collective). None of ranks without a student."""

    def generate(
        self, split: str, modes: Sequence[Mode], joint_weight: float
    ) -> dict[Mode, Generated]:
        """Generate the texts of a split, of each mode (collective); ranks with a student give
        theirs."""

    def check_replicas(self, step: int) -> None:
        """Compare the replicas of the table (collective).

        Raises:
            ReplicaDriftError: they differ.
        """

    def save(self, folder: Path) -> None:
        """Write the weights into an existing folder, which all hosts share (collective)."""

    def load(self, folder: Path) -> None:
        """Put weights in for inference (collective)."""

    def stats(self) -> RankStats:
        """Counts and peaks (collective)."""

    def clock_s(self) -> float:
        """The time on this host, in seconds since 1970."""

    def set_threads(self, threads: int) -> None:
        """Compute with so many CPU threads from now on."""

    def perturb_table(self, rank: int, amount: float) -> None:
        """Fault injection for tests: make the replica of one rank differ."""


@dataclass(frozen=True)
class Meeting:
    """Where the process groups meet: at each group's first rank."""

    addresses: dict[str, tuple[str, int]]
    """Group (teacher, student, link, tied) → host, port."""


class ProcessApi(RankApi, Protocol):
    """What the process of a rank does besides: before there are models, and about itself."""

    def offer_addresses(self, stages: tuple[str, ...]) -> dict[str, tuple[str, int]]:
        """Addresses on this host of the groups whose first rank this is: those of both stages, and
        of `stages`, which join theirs."""

    def join(self, meeting: Meeting) -> None:
        """Import the heavy libraries and join the stage's world, unless it was not left, and the
        groups of both stages (collective)."""

    def build(self, blueprint: Blueprint) -> None:
        """Read the data and build models and engines (collective: the table is broadcast). May be
        called again with another blueprint of the same topology."""

    def warm_up(self) -> None:
        """Of a spare: import all that a rank imports, and read the data."""

    def become(self, rank: int, threads: int, log_file: str) -> None:
        """Of a spare: take a rank's place."""

    def keep_in(self, slots: tuple[str, ...]) -> None:
        """Keep cuts in memory in these slots; before `build`."""

    def let_go(self, stages: tuple[str, ...]) -> None:
        """Other ranks are gone: what this one is doing with others is to fail soon. `stages`: those
        whose own worlds are gone too."""

    def leave(self, stages: tuple[str, ...]) -> bool:
        """Forget the groups of both stages, and the world and engines of `stages`, so that `join`
        and `build` can come again; what was read stays. Whether no engine was left that should
        have been kept, but can't be."""

    def end(self) -> None:
        """End this process in a moment."""

    def status(self) -> Status:
        """What this rank does now."""

    def stacks(self) -> str:
        """Where every Python thread of this process is."""


MEANWHILE = frozenset(
    method.__name__
    for method in (
        RankApi.checkpoint_so_far,
        ProcessApi.end,
        ProcessApi.let_go,
        ProcessApi.status,
        ProcessApi.stacks,
    )
)
"""Methods that are answered while another one lasts."""


def name_of(method: Callable[..., Any]) -> str:
    """The name by which a method is called in another process."""
    return method.__name__
