"""How much waits for a run whose queues are elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tsarch.clock import now_s
from tsarch.serving.engine import ServiceError
from tsarch.serving.served_pair import CHARACTERS_A_TOKEN, num_characters

_MOST_RETRY_S = 60


class Room:
    """Tokens that are let in and aren't answered: so many at most, or one request with more."""

    def __init__(self, most_tokens: int) -> None:
        self._most = most_tokens
        self._tokens_per_s = 1000.0
        self.tokens = 0
        self.num_requests = 0

    @contextmanager
    def reserved_for(self, inputs: object) -> Iterator[Callable[[int], None]]:
        """Room for a request: about as much as its texts need, until its tokens are counted and
        told to what this gives.

        Raises:
            ServiceError: there is none now (429), or there never is (413).
        """
        held = 0
        started = now_s()

        def reserve(tokens: int) -> None:
            nonlocal held
            self.tokens -= held
            held = 0
            self._admit(tokens)
            self.tokens += tokens
            held = tokens

        self.num_requests += 1
        try:
            reserve(min(num_characters(inputs) // CHARACTERS_A_TOKEN, self._most))
            yield reserve
            self._measure(now_s() - started)
        finally:
            self.tokens -= held
            self.num_requests -= 1

    def _admit(self, tokens: int) -> None:
        if tokens > self._most:
            what = f"The request has {tokens:,} tokens, of which {self._most:,} are read at most."
            raise ServiceError(413, f"{what} Split it into several.")
        if self.tokens and self.tokens + tokens > self._most:
            after = int(min(max(1, self.tokens / self._tokens_per_s), _MOST_RETRY_S))
            what = f"{self.tokens:,} tokens are waiting already, of {self._most:,} at most."
            raise ServiceError(429, f"{what} Try again in {after} s.", after)

    def _measure(self, seconds: float) -> None:
        """All that is here now is answered within about the time that a request takes."""
        speed = self.tokens / max(seconds, 1e-6)
        self._tokens_per_s = 0.8 * self._tokens_per_s + 0.2 * speed
