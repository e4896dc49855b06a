"""Calls to all ranks at once, and what to say when one of them fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from tsarch.clock import now_s
from tsarch.cluster.nodes import look_from_here
from tsarch.cluster.watch import Watch
from tsarch.errors import RankFailedError
from tsarch.rank.api import MEANWHILE, ProcessApi, name_of
from tsarch.rank.diagnosis import (
    Cause,
    End,
    Kind,
    Scene,
    end_by,
    find_cause,
    tell,
)
from tsarch.rank.status import log_file
from tsarch.topology import Topology

_LOOK_S = 0.2
"""How often the driver looks for failures while it waits for results."""
_CAUSE_TIMEOUT_S = 8.0
"""How long to look for the one to blame, when ranks have lost another one; longer, if its node may
be silent for longer."""
_ANSWER_TIMEOUT_S = 3.0


def end_of(error: Exception) -> End:
    """How a call failed that Ray tells of so."""
    if isinstance(error, OutOfMemoryError):
        return End(Kind.OUT_OF_MEMORY)
    cause = error.cause if isinstance(error, RayTaskError) else None
    return End(Kind.GONE) if cause is None else end_by(cause)


class Calls:
    """Calls to the ranks of a crew."""

    def __init__(
        self, workers: Sequence[Any], topology: Topology, watch: Watch, log_folder: Path
    ) -> None:
        self._workers = workers
        self._topology = topology
        self._watch = watch
        self._log_folder = log_folder
        self._open: list[list[Any]] = []
        """Calls that were made and whose results have not been taken, by rank."""
        self._told: list[list[Any]] = []
        self.has_failed = False
        self.drained: frozenset[str] = frozenset()
        """Ids of nodes that are to be taken away, so that nothing goes on there after a failure."""

    def submit(self, name: str, arguments: tuple[Any, ...]) -> list[Any]:
        """Call a method of all ranks; references to the results, by rank."""
        return self.submit_each(name, [arguments] * len(self._workers))

    def submit_each(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The same with arguments for each rank."""
        calls = [w.do_meanwhile if name in MEANWHILE else w.do for w in self._workers]
        references = [call.remote(name, own) for call, own in zip(calls, arguments, strict=True)]
        self._open.append(references)
        return references

    def collect(self, references: list[Any]) -> list[Any]:
        """Results by rank; the first rank that fails ends the waiting for all.

        Raises:
            UserError, ReplicaDriftError: as the rank raised it.
            RankFailedError: names the rank, with the end of its log.
        """
        results: dict[Any, Any] = {}
        waiting = list(references)
        while waiting:
            # Wake up at the first result, since it may be a failure, then take all that are there.
            done, waiting = ray.wait(waiting, num_returns=1, timeout=_LOOK_S)
            if done and waiting:
                others, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0)
                done = [*done, *others]
            # A rank may wait in this call for one that has failed in another.
            if self._watch.finding is not None or (not done and _ends(self._open)):
                raise self.failure()
            try:
                results |= zip(done, ray.get(done), strict=True)
            except RayError:
                raise self.failure() from None
        self.forget(references)
        return [results[reference] for reference in references]

    def failure(self) -> Exception:
        """The error that the user should see, once something has failed."""
        self.has_failed = True
        noticed_s = now_s()
        cause = self._find_cause()
        self._told, self._open = self._open, []  # they are told of once
        if cause.kind is Kind.TOLD:
            assert cause.end is not None
            assert cause.end.error is not None
            return cause.end.error
        lost = self.drained
        if cause.finding is not None and cause.finding.kind == "node lost":
            lost |= {self._watch.node(rank).node_id for rank in cause.ranks}
        return RankFailedError(self._describe(cause), noticed_s, lost, frozenset(cause.ranks))

    def forget(self, references: list[Any]) -> None:
        """Results of a call have been taken, or nobody wants them any more."""
        if references in self._open:
            self._open.remove(references)

    def _find_cause(self) -> Cause:
        """Wait for a moment, so that the rank to blame is found and not one that lost it."""
        given_up_s = time.monotonic() + max(_CAUSE_TIMEOUT_S, self._watch.node_patience_s)
        while True:
            cause = find_cause(_ends(self._open), self._watch.finding)
            if cause is not None and cause.kind is Kind.GONE:
                lost = self._watch.lost_node(cause.ranks[0])
                cause = cause if lost is None else Cause(lost.ranks, None, lost)
            if cause is not None and (cause.is_certain or time.monotonic() > given_up_s):
                return cause
            time.sleep(_LOOK_S)

    def busy(self) -> set[int]:
        """Ranks that have not answered what they were asked before a failure, or have ended."""
        found, asked = set(), [*self._told, *self._open]
        for references in asked:
            done, _ = ray.wait(references, num_returns=len(references), timeout=0)
            found |= {rank for rank, own in enumerate(references) if own not in done}
        return found | {rank for rank, end in _ends(asked).items() if end.kind is Kind.GONE}

    def _describe(self, cause: Cause) -> str:
        """See `tell`."""
        rank, watch = cause.ranks[0], self._watch
        log_path = log_file(self._log_folder, rank)
        node, status = watch.node(rank), watch.last_status(rank)
        kind = None if cause.finding is None else cause.finding.kind
        knows = status is not None and kind != "node lost"
        scene = Scene(
            node.address,
            log_path,
            {r: s for r in range(self._topology.num_ranks) if (s := watch.last_status(r))},
            watch.silent_s(rank),
            look_from_here(node, status.pid, log_path) if knows and status is not None else None,
            self._stacks(rank) if kind == "hang" else "",
        )
        return tell(cause, self._topology, scene)

    def _stacks(self, rank: int) -> str:
        """Where the threads of a rank that hangs are."""
        reference = self._workers[rank].do_meanwhile.remote(name_of(ProcessApi.stacks), ())
        done, _ = ray.wait([reference], timeout=_ANSWER_TIMEOUT_S)
        try:
            return str(ray.get(done[0])) if done else ""
        except RayError:
            return ""


def _ends(calls: Sequence[Sequence[Any]]) -> dict[int, End]:
    """How calls have failed, the first of each rank."""
    ends: dict[int, End] = {}
    for references in calls:
        done, _ = ray.wait(list(references), num_returns=len(references), timeout=0)
        for reference in done:
            try:
                ray.get(reference)
            except RayError as error:
                ends.setdefault(references.index(reference), end_of(error))
    return ends
