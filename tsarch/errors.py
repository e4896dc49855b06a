"""Mistakes of the user: collected, then shown together in plain words (exit status 2)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from tsarch.redaction import redact

# What a rank says that has lost another one, or waited for it in vain: gloo, nccl, sockets.
_LOST_PEER = re.compile(
    r"closed by peer|connection reset|broken pipe|connection refused|socket closed|timed out"
    r"|timeout|nccl|remote process exited",
    re.IGNORECASE,
)
_MOST_CHARACTERS = 10_000
"""Of a library's error, looked at."""


@dataclass(frozen=True)
class Mistake:
    """One thing to put right: where it is, what is wrong, what to do about it."""

    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" {self.hint}" if self.hint else "")


class UserError(ValueError):
    """Input that the user has to change; carries every mistake that was found, without secrets."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(
            Mistake(redact(m.where), redact(m.what), redact(m.hint)) for m in mistakes
        )
        assert self.mistakes, "a UserError names at least one mistake"
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))

    def __reduce__(self) -> tuple[type[UserError], tuple[tuple[Mistake, ...]]]:
        return (UserError, (self.mistakes,))

    @classmethod
    def single(cls, where: str, what: str, hint: str = "") -> UserError:
        """A `UserError` of one mistake."""
        return cls([Mistake(where, what, hint)])


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


class RankFailedError(RunFailedError):
    """A rank or node that failed on Ray: what a run can start again after."""

    def __init__(
        self, message: str, noticed_s: float, lost_nodes: frozenset[str] = frozenset()
    ) -> None:
        """`noticed_s`: when (`run.clock.now_s`). `lost_nodes`: ids of nodes that nothing may be
        placed on."""
        self.noticed_s = noticed_s
        self.lost_nodes = lost_nodes
        super().__init__(message)

    def __reduce__(self) -> tuple[type[RankFailedError], tuple[str, float, frozenset[str]]]:
        return (RankFailedError, (str(self), self.noticed_s, self.lost_nodes))


class InterruptedRunError(RuntimeError):
    """A run that was told to end, and has saved where it was."""

    def __init__(self, signal_number: int, message: str) -> None:
        self.signal_number = signal_number
        super().__init__(message)

    def __reduce__(self) -> tuple[type[InterruptedRunError], tuple[int, str]]:
        return (InterruptedRunError, (self.signal_number, str(self)))
