"""Mistakes of the user: collected, then shown together in plain words (exit status 2)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tsarch.redaction import redact

# What a rank says that has lost another one, or waited for it in vain: gloo, nccl, sockets.
_LOST_PEER = re.compile(
    r"closed by peer|connection reset|broken pipe|connection refused|socket closed|timed out"
    r"|timeout|nccl|remote process exited",
    re.IGNORECASE,
)
_MOST_CHARACTERS = 10_000
"""Of a library's error, looked at."""
_MOST_SHOWN = 50
"""Mistakes that are shown."""
_FEW_ALIKE = 3
"""Mistakes of one kind that are shown one by one."""
_LINE = re.compile(r"(?<=:)(row |item )?\d+$")
_NUMBER = re.compile(r"\d+")
_VALUE = re.compile(r"`[^`]*`|(?<!\w)'[^']*'|\"[^\"]*\"")


@dataclass(frozen=True)
class Mistake:
    """One thing to put right: where it is, what is wrong, what to do about it."""

    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" {self.hint}" if self.hint else "")


class UserError(ValueError):
    """Input that the user has to change; carries the mistakes that were found, without secrets:
    many of one kind in a file as one, and at most 50."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(
            Mistake(redact(m.where), redact(m.what), redact(m.hint))
            for m in _shortened(list(mistakes))
        )
        assert self.mistakes, "a UserError names at least one mistake"
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))

    def __reduce__(self) -> tuple[type[UserError], tuple[tuple[Mistake, ...]]]:
        return (UserError, (self.mistakes,))

    @classmethod
    def single(cls, where: str, what: str, hint: str = "") -> UserError:
        """A `UserError` of one mistake."""
        return cls([Mistake(where, what, hint)])


def _shortened(mistakes: Sequence[Mistake]) -> list[Mistake]:
    """The mistakes in order, those that are alike as one, and the number of those beyond 50."""
    alike: dict[tuple[str, str, str], list[Mistake]] = {}
    for mistake in mistakes:
        alike.setdefault(_kind(mistake), []).append(mistake)
    kept: list[Mistake] = []
    for mistake in mistakes:
        group = alike[_kind(mistake)]
        if len(group) <= _FEW_ALIKE:
            kept.append(mistake)
        elif mistake is group[0]:
            kept.append(_as_one(group))
    if len(kept) <= _MOST_SHOWN + 1:
        return kept
    return [*kept[:_MOST_SHOWN], Mistake("…", f"and {len(kept) - _MOST_SHOWN} more mistakes.")]


def _kind(mistake: Mistake) -> tuple[str, str, str]:
    """What is the same in mistakes of one kind in a file: all but line, numbers and values."""
    place = _LINE.sub("#", mistake.where)
    if place == mistake.where:  # no line of a file: alone
        return mistake.where, mistake.what, mistake.hint
    what, hint = (_NUMBER.sub("#", _VALUE.sub("#", text)) for text in (mistake.what, mistake.hint))
    return place, what, hint


def _as_one(group: Sequence[Mistake]) -> Mistake:
    """The first mistake of a kind, lines and values of the next two, and how many there are."""
    first, examples = group[0], []
    for mistake in group[1:_FEW_ALIKE]:
        pairs = zip(_VALUE.findall(mistake.what), _VALUE.findall(first.what))
        values = " ".join(own for own, other in pairs if own != other)
        place = mistake.where.rpartition(":")[2]
        place = f"line {place}" if place.isdecimal() else place
        examples.append(f"{place} ({values})" if values else place)
    others = f"({len(group) - 1:,} more like it, such as {' and '.join(examples)}.)"
    return Mistake(first.where, first.what, f"{first.hint} {others}".strip())


def one_line(error: BaseException) -> str:
    """What a library's error says, short enough for a message of ours."""
    text = (str(error) or repr(error))[:_MOST_CHARACTERS]
    return textwrap.shorten(redact(text), width=300, placeholder=" …")


def has_lost_peer(error: BaseException) -> bool:
    """Whether another rank's end explains an error."""
    # OSError is a ConnectionError's base, but also what a full disk raises.
    talks = isinstance(error, RuntimeError | ConnectionError | TimeoutError)
    return talks and _LOST_PEER.search(str(error)) is not None


class ReplicaDriftError(RuntimeError):
    """Replicas of the tied embedding that are no longer bitwise equal."""

    def __init__(self, step: int, ranks: list[str]) -> None:
        self.step = step
        self.ranks = ranks
        super().__init__(
            f"step {step}: the tied embedding of {', '.join(ranks)} differs from the other "
            "replicas; every replica must be bitwise equal after each step"
        )

    def __reduce__(self) -> tuple[type[ReplicaDriftError], tuple[int, list[str]]]:
        return (ReplicaDriftError, (self.step, self.ranks))


class RunFailedError(RuntimeError):
    """A run that ended because a rank failed; the message names the rank and the cause."""


class NoPlaceError(RuntimeError):
    """A run that finds no place for its ranks after it has lost nodes."""


class RankFailedError(RunFailedError):
    """A rank or node that failed on Ray: what a run can start again after."""

    def __init__(
        self,
        message: str,
        noticed_s: float,
        lost_nodes: frozenset[str] = frozenset(),
        ranks: frozenset[int] = frozenset(),
    ) -> None:
        """`noticed_s`: when (`run.clock.now_s`). `lost_nodes`: ids of nodes that nothing may be
        placed on. `ranks`: those to blame."""
        self.noticed_s = noticed_s
        self.lost_nodes = lost_nodes
        self.ranks = ranks
        super().__init__(message)

    def of(self, ranks: frozenset[int]) -> RankFailedError:
        """The same, with other ranks to blame."""
        return RankFailedError(str(self), self.noticed_s, self.lost_nodes, ranks)

    def __reduce__(self) -> tuple[Any, ...]:
        return (RankFailedError, (str(self), self.noticed_s, self.lost_nodes, self.ranks))


class HeadLostError(RunFailedError):
    """A run whose Ray cluster has lost its head, and which has saved where it was."""


class InterruptedRunError(RuntimeError):
    """A run that was told to end, and has saved where it was."""

    def __init__(self, signal_number: int, message: str) -> None:
        self.signal_number = signal_number
        super().__init__(message)

    def __reduce__(self) -> tuple[type[InterruptedRunError], tuple[int, str]]:
        return (InterruptedRunError, (self.signal_number, str(self)))
