"""What stands between the app and whoever computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tsarch.config import Mode, SpanEnds
from tsarch.inputs.rows import Input
from tsarch.prediction.unread import OnUnread


class ServiceError(Exception):
    """A request that gets no answer, and why.

    Attributes:
        status: of HTTP.
        detail: what is wrong, and what to do about it.
        retry_after_s: when it may be tried again; None: it's of no use.
    """

    def __init__(self, status: int, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[ServiceError], tuple[int, str, int | None]]:
        return (ServiceError, (self.status, self.detail, self.retry_after_s))


@dataclass(frozen=True)
class RunInfo:
    """A run that is served."""

    name: str
    task: str
    labels: tuple[str, ...]
    modes: tuple[Mode, ...]
    default_mode: Mode
    version: str
    """Changes with the weights."""
    examples: tuple[Any, ...]
    """A few inputs that it can answer."""
    columns: Mapping[str, str]
    """The task's own name of a column → what rows of the run call it."""
    span_ends: SpanEnds
    """Of `head` and `tail` in rows: the word after the span, or its last."""


@dataclass(frozen=True)
class Answered:
    """A request that was answered."""

    run: str
    version: str
    mode: Mode
    answers: list[Any]
    """Of each input, as `prediction.batch.as_json` gives them."""
    num_tokens: int
    """That the teacher reads, or would."""


class Engine(Protocol):
    """Answers requests: models in this process (`LocalEngine`), or elsewhere."""

    def runs(self) -> tuple[RunInfo, ...]:
        """All runs that are served, in the order of the command line; what it says may change."""

    async def predict(
        self,
        run: str,
        inputs: Sequence[Input],
        mode: Mode | None,
        on_unread: OnUnread = "error",
    ) -> Answered:
        """Answers to inputs.

        Args:
            run: name of a run of `runs()`.
            mode: one of the run's, or None: its default.
            on_unread: see `TrainedPair.predict`.

        Raises:
            ServiceError: 413 or 422: it can't be read; 429: too much is waiting; 503: not now.
        """

    async def reload(self, run: str) -> RunInfo:
        """Serve the run's current version from now on; requests that were accepted are answered by
        the version that they met, and none fails.

        Raises:
            ServiceError: 503: it can't be loaded; the old one goes on.
        """

    async def close(self) -> None:
        """Answer what was accepted, then let go of everything."""
