"""From what the ranks' calls ended with to the one cause, in plain words. Pure but for the types of
Ray's errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from ray.exceptions import OutOfMemoryError, RayTaskError

from tsarch.cluster.watch import Finding
from tsarch.errors import ReplicaDriftError, UserError, has_lost_peer
from tsarch.rank.status import ProcessFacts, Status


class Kind(IntEnum):
    """How a call to a rank can fail, the likeliest cause of the others first."""

    TOLD = 0
    """The rank found a mistake of the user's, or a damage, and says so itself."""
    OUT_OF_MEMORY = 1
    """Ray ended it, since the host's memory ran out."""
    GONE = 2
    """Its process is gone."""
    RAISED = 3
    """An exception."""
    LOST_PEER = 4
    """An exception that another rank's end explains."""


def kind_of(error: Exception) -> Kind:
    """How a call failed."""
    if isinstance(error, OutOfMemoryError):
        return Kind.OUT_OF_MEMORY
    cause = error.cause if isinstance(error, RayTaskError) else None
    if cause is None:
        return Kind.GONE
    if isinstance(cause, UserError | ReplicaDriftError):
        return Kind.TOLD
    return Kind.LOST_PEER if has_lost_peer(cause) else Kind.RAISED


@dataclass(frozen=True)
class Cause:
    """Whose fault a failure is."""

    ranks: tuple[int, ...]
    error: Exception | None
    finding: Finding | None

    @property
    def kind(self) -> Kind | None:
        """How the call failed, if one did."""
        return None if self.error is None else kind_of(self.error)

    @property
    def is_certain(self) -> bool:
        """Whether it isn't only a rank that lost another one."""
        return self.kind is not Kind.LOST_PEER


def find_cause(errors: Mapping[int, Exception], finding: Finding | None) -> Cause | None:
    """The likeliest cause: `errors` are what calls to ranks ended with, `finding` what the watch
    has found. None: nothing has failed."""
    kinds = {rank: kind_of(error) for rank, error in errors.items()}
    first = min(kinds, key=lambda rank: (kinds[rank], rank), default=None)
    if finding is not None and (first is None or kinds[first] is not Kind.TOLD):
        return Cause(finding.ranks, None, finding)
    if first is None:
        return None
    return Cause((first,), errors[first], None)


def describe_end(
    error: Exception, status: Status | None, facts: ProcessFacts | None, signal: str | None
) -> str:
    """What happened to a rank whose call failed; `signal`: that its log tells of."""
    match kind_of(error):
        case Kind.OUT_OF_MEMORY:
            return f"was ended by Ray, since the host ran out of memory{_memory(status)}"
        case Kind.GONE:
            return f"was killed: its process{_pid(status)} is gone{_signal(status, facts, signal)}"
    cause = error.cause if isinstance(error, RayTaskError) else error
    return f"failed: {type(cause).__name__}: {cause}"


def describe_finding(
    finding: Finding, status: Status | None, facts: ProcessFacts | None, node: str
) -> str:
    """What is wrong with a rank that a watch has found."""
    seconds = f"{finding.seconds:.0f} s"
    one = len(finding.ranks) == 1
    match finding.kind:
        case "node lost":
            lost = "is lost with its" if one else "are lost with their"
            return f"{lost} node {node}, which doesn't answer since {seconds}"
        case "frozen":
            state = "" if facts is None or facts.state is None else f" (state: {facts.state})"
            frozen = f"its process{_pid(status)} is" if one else "their processes are"
            return f"{'doesn' if one else 'don'}'t answer since {seconds}: {frozen} frozen{state}"
    return f"{'hangs' if one else 'hang'}: no progress since {seconds}"


def describe_place(status: Status | None, facts: ProcessFacts | None, silent_s: float) -> str:
    """What a rank did last: by its note, which is exact, or else what it said `silent_s` ago."""
    noted = None if facts is None else facts.doing
    if noted is not None:
        return f"It was at {noted}{_memory(status)}."
    if status is not None:
        when = f"When last heard of, {silent_s:.0f} s before,"
        return f"{when} it was at {status.doing}{_memory(status)}."
    return "It was never heard of."


def describe_others(statuses: Mapping[str, Status]) -> str:
    """What the other ranks wait in, by their names."""
    waiting = [f"{name} in {s.doing} since {s.still_s:.0f} s" for name, s in statuses.items()]
    return f"The others: {', '.join(waiting)}." if waiting else ""


def _pid(status: Status | None) -> str:
    return "" if status is None else f" {status.pid}"


def _memory(status: Status | None) -> str:
    if status is None:
        return ""
    own, free, total = (n / 1e9 for n in (status.rss_bytes, status.free_bytes, status.total_bytes))
    return f"; it used {own:.1f} GB, of the host's {total:.1f} GB {free:.1f} GB were free"


def _signal(status: Status | None, facts: ProcessFacts | None, signal: str | None) -> str:
    """Which signal ended a process: its log tells of all that a process can notice."""
    if signal is not None:
        return f" ({signal}, see its log)"
    if status is None or facts is None or facts.oom_kills is None or status.oom_kills is None:
        return ""
    if facts.oom_kills > status.oom_kills:
        return " (SIGKILL by the kernel: out of memory)"
    return " (SIGKILL, but not by the kernel for lack of memory)"
