"""How a crew becomes whole again after ranks of it have failed: who stays, what is made anew.

Ranks that have failed are replaced by new processes. All others stay, with their imports and data.
The groups across both stages are made anew, and the world and engines of a stage that has lost a
rank. The other stage keeps its world and engines: its ranks go on to the end of a tick first, where
no collective of theirs is open. Then all go back to the last cut in memory.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Collection

from tsarch.errors import RankFailedError
from tsarch.rank.api import ProcessApi
from tsarch.rank.crew import CrewOfProcesses, Kept, Mended
from tsarch.topology import Stage

SPARES_AFTER_S = 10.0
"""Of training: the first steps have the cores for themselves."""
_PATIENCE_S = 2.0
"""How long ranks may take to let go of what they were doing, beside what a command takes."""
_LOOK_S = 0.02


class MendedCrew(CrewOfProcesses):
    """A crew whose ranks can be replaced one by one."""

    @abstractmethod
    def remove(self, ranks: Collection[int]) -> None:
        """End the processes of ranks at once, whatever state they are in."""

    @abstractmethod
    def replace(self, ranks: Collection[int]) -> bool:
        """Start new processes in the place of removed ones; False: there is no place for one."""

    @abstractmethod
    def let_go(self, ranks: Collection[int], stages: tuple[str, ...]) -> None:
        """Ask some ranks `ProcessApi.let_go`, without waiting."""

    @abstractmethod
    def busy(self) -> set[int]:
        """Ranks that are still doing what they were asked before the failure, or have ended."""

    @abstractmethod
    def start_over(self) -> None:
        """Want no answer any more to what was asked so far, and watch the ranks as they are now."""

    @abstractmethod
    def start_spares(self, wait: bool = False) -> None:
        """Start the spare processes that are missing; `wait` until they are ready."""

    @abstractmethod
    def last_cut(self) -> Kept | None:
        """See `Mended.cut`."""

    def mend(self, failure: RankFailedError) -> Mended | None:
        """See `Crew`."""
        failed = set(failure.ranks)
        if not failed:
            return None
        self.remove(failed)
        if not self.replace(failed):  # they import while the others let go
            return None
        lost = self._stages_of(failed)
        stuck = self._settle(failed, lost)
        if stuck:
            lost |= self._stages_of(stuck)
            self.remove(stuck)
            if not self.replace(stuck):
                return None
        self.start_over()
        self.want_nothing()
        if spoilt := self._leave(lost):
            lost |= spoilt
            self._leave(lost)
        cut = self.last_cut()
        if cut is None:  # no engine has the weights that training starts with
            lost = set(self.topology.stages)
            self._leave(lost)
        self.join(lost)
        self.ask(ProcessApi.build, self.blueprint)
        return Mended(cut, len(failed | stuck), tuple(s for s in self.topology.stages if s in lost))

    def _settle(self, failed: Collection[int], lost: set[Stage]) -> set[int]:
        """Wait until the ranks that have not failed are done with what they were asked; those that
        are not to be waited for. A stage whose ranks don't get there becomes one of the `lost`."""
        left = set(range(self.topology.num_ranks)) - set(failed)
        busy = left
        for _ in range(2):  # whole stages have their own collectives to wait in
            self.let_go(left, _names(lost))
            given_up_s = time.monotonic() + _PATIENCE_S + 2 * self.command_s
            while (busy := self.busy() & left) and time.monotonic() < given_up_s:
                time.sleep(_LOOK_S)
            if not busy:
                break
            lost |= self._stages_of(busy)
        return busy

    def _leave(self, lost: Collection[Stage]) -> set[Stage]:
        """Let all ranks leave; stages whose engines should have stayed, but can't."""
        kept = self.ask(ProcessApi.leave, _names(lost))
        return self._stages_of([rank for rank, own in enumerate(kept) if not own])

    def _stages_of(self, ranks: Collection[int]) -> set[Stage]:
        return {self.topology.place(rank)[0] for rank in ranks}


def _names(stages: Collection[Stage]) -> tuple[str, ...]:
    return tuple(sorted(stage.value for stage in stages))
