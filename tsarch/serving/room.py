"""How much waits or is read for a run at most, and what whoever comes too late is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tsarch.clock import now_s
from tsarch.serving.engine import ServiceError

_CHARACTERS_A_TOKEN = 4
"""About: room is kept for a text before it's tokenised."""
_MOST_RETRY_S = 60


class Room:
    """Tokens that are let in and aren't answered: so many at most, or one request with more."""

    def __init__(self, most_tokens: int) -> None:
        self._most = most_tokens
        self._tokens_per_s = 1000.0
        self.tokens = 0
        self.num_requests = 0

    @contextmanager
    def reserved(self, tokens: int) -> Iterator[Callable[[int], None]]:
        """Room for a request of so many tokens. What it gives takes other room for it instead.

        Raises:
            ServiceError: there is none now (429), or there never is (413).
        """
        held = 0

        def reserve(tokens: int) -> None:
            nonlocal held
            self.tokens -= held
            held = 0
            self._admit(tokens)
            self.tokens += tokens
            held = tokens

        self.num_requests += 1
        try:
            reserve(tokens)
            yield reserve
        finally:
            self.tokens -= held
            self.num_requests -= 1

    @contextmanager
    def reserved_for(self, inputs: object) -> Iterator[Callable[[int], None]]:
        """Room for a request: about as much as its texts need, until its tokens are counted and
        told to what this gives. A guess alone refuses nobody for good.

        Raises:
            ServiceError: there is none now (429), or there never is (413).
        """
        with self.reserved(min(_num_characters(inputs) // _CHARACTERS_A_TOKEN, self._most)) as own:
            yield own

    def measure(self, tokens: int, seconds: float) -> None:
        """So many tokens were answered in a time."""
        speed = tokens / max(seconds, 1e-6)
        self._tokens_per_s = 0.8 * self._tokens_per_s + 0.2 * speed

    @contextmanager
    def measured(self) -> Iterator[None]:
        """While a request is answered, in about the time that all which is here takes."""
        started = now_s()
        yield
        self.measure(self.tokens, now_s() - started)

    def _admit(self, tokens: int) -> None:
        if tokens > self._most:
            what = f"The request has {tokens:,} tokens, of which {self._most:,} are read at most."
            raise ServiceError(413, f"{what} Split it into several.")
        if self.tokens and self.tokens + tokens > self._most:
            after = int(min(max(1, self.tokens / self._tokens_per_s), _MOST_RETRY_S))
            what = f"{self.tokens:,} tokens are waiting already, of {self._most:,} at most."
            raise ServiceError(429, f"{what} Try again in {after} s.", after)


def _num_characters(inputs: object) -> int:
    """Of all texts in inputs."""
    if isinstance(inputs, str):
        return len(inputs)
    if isinstance(inputs, dict):
        return sum(map(_num_characters, inputs.values()))
    if isinstance(inputs, list | tuple):
        return sum(map(_num_characters, inputs))
    return 1
