"""From what the ranks' calls ended with to the one cause, in plain words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from signal import Signals

from tsarch.errors import ReplicaDriftError, UserError, has_lost_peer
from tsarch.rank.hangs import Finding
from tsarch.rank.status import ProcessFacts, Status, read_log
from tsarch.topology import Topology

_LOG_LINES = 12
_HEARD_S = 0.5
"""A rank that was silent for less is there."""


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


@dataclass(frozen=True)
class End:
    """How a call to a rank failed."""

    kind: Kind
    error: Exception | None = None
    """What the rank raised."""
    exit_code: int | None = None
    """Of its process, if that is gone and somebody knows; as `subprocess` has it, -9 for
    SIGKILL."""


def end_by(error: Exception) -> End:
    """The end of a call in which the rank raised `error`."""
    if isinstance(error, UserError | ReplicaDriftError):
        return End(Kind.TOLD, error)
    return End(Kind.LOST_PEER if has_lost_peer(error) else Kind.RAISED, error)


@dataclass(frozen=True)
class Cause:
    """Whose fault a failure is."""

    ranks: tuple[int, ...]
    end: End | None
    finding: Finding | None

    @property
    def kind(self) -> Kind | None:
        """How the call failed, if one did."""
        return None if self.end is None else self.end.kind

    @property
    def is_certain(self) -> bool:
        """Whether it isn't only a rank that lost another one."""
        return self.kind is not Kind.LOST_PEER


def find_cause(ends: Mapping[int, End], finding: Finding | None) -> Cause | None:
    """The likeliest cause: `ends` are those of calls to ranks, `finding` what a watch has found.
    None: nothing has failed."""
    first = min(ends, key=lambda rank: (ends[rank].kind, rank), default=None)
    if finding is not None and (first is None or ends[first].kind is not Kind.TOLD):
        return Cause(finding.ranks, None, finding)
    if first is None:
        return None
    return Cause((first,), ends[first], None)


def describe_end(
    end: End, status: Status | None, facts: ProcessFacts | None, signal: str | None
) -> str:
    """What happened to a rank whose call failed; `signal`: that its log tells of."""
    match end.kind:
        case Kind.OUT_OF_MEMORY:
            return f"was ended by Ray, since the host ran out of memory{_memory(status)}"
        case Kind.GONE if end.exit_code is None:
            return f"was killed: its process{_pid(status)} is gone{_signal(status, facts, signal)}"
        case Kind.GONE if end.exit_code is not None and end.exit_code >= 0:
            return f"ended: its process{_pid(status)} has exit status {end.exit_code}"
        case Kind.GONE:
            assert end.exit_code is not None
            by = Signals(-end.exit_code)
            why = _oom(status, facts) if by is Signals.SIGKILL else ""
            return f"was killed by {by.name}{why}: its process{_pid(status)} is gone"
    return f"failed: {type(end.error).__name__}: {end.error}"


def describe_finding(
    finding: Finding, status: Status | None, facts: ProcessFacts | None, node: str
) -> str:
    """What is wrong with a rank that a watch has found."""
    seconds = f"{finding.seconds:.0f} s"
    one = len(finding.ranks) == 1
    match finding.kind:
        case "node lost":
            lost = "is lost with its" if one else "are lost with their"
            is_heard = finding.seconds < _HEARD_S
            why = "whose Ray has ended" if is_heard else f"which doesn't answer since {seconds}"
            return f"{lost} node {node}, {why}"
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


@dataclass(frozen=True)
class Scene:
    """What is known of the rank to blame, and of the others."""

    address: str
    """Of its node."""
    log_file: Path
    statuses: Mapping[int, Status]
    """What each rank said last, of those that have said something."""
    silent_s: float
    """Since the rank said it."""
    facts: ProcessFacts | None = None
    """What its node says of its process."""
    stacks: str = ""
    """Where its threads are, if it hangs."""


def tell(cause: Cause, topology: Topology, scene: Scene) -> str:
    """The whole message: who, where, what, when, the end of the log, and what others did."""
    status, log = scene.statuses.get(cause.ranks[0]), read_log(scene.log_file, _LOG_LINES)
    if cause.end is not None:
        what = describe_end(cause.end, status, scene.facts, log.signal)
    else:
        assert cause.finding is not None
        what = describe_finding(cause.finding, status, scene.facts, scene.address)
    names = " and ".join(map(topology.label, cause.ranks))
    lines = [
        f"{names} on {scene.address} {what}",
        describe_place(status, scene.facts, scene.silent_s),
    ]
    if cause.finding is not None:
        others = {topology.label(r): s for r, s in scene.statuses.items() if r not in cause.ranks}
        lines += [describe_others(others), scene.stacks]
    lines += [f"end of {scene.log_file}:", *log.lines]
    return "\n".join(line for line in lines if line)


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
    by_kernel = _by_kernel(status, facts)
    if by_kernel is None:
        return ""
    if by_kernel:
        return " (SIGKILL by the kernel: out of memory)"
    return " (SIGKILL, but not by the kernel for lack of memory)"


def _oom(status: Status | None, facts: ProcessFacts | None) -> str:
    """Whether it was the kernel that sent SIGKILL."""
    by_kernel = _by_kernel(status, facts)
    if by_kernel is None:
        return ""
    return " by the kernel: out of memory" if by_kernel else ", not for lack of memory"


def _by_kernel(status: Status | None, facts: ProcessFacts | None) -> bool | None:
    """Whether the kernel has killed something for lack of memory since `status`; None: nobody
    knows."""
    if status is None or facts is None or facts.oom_kills is None or status.oom_kills is None:
        return None
    return facts.oom_kills > status.oom_kills
