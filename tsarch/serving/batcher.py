"""Requests that wait, read together by tokens: a bounded queue in front of one thread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tsarch.clock import now_s
from tsarch.serving.room import Room

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Batching:
    """How requests are put together."""

    tokens: int = 4096
    """Of a batch, unless one request alone has more."""
    wait_s: float = 0.002
    """For others, where the batch before had several requests too."""
    queue_tokens: int = 262_144
    """That wait or are read, at most."""


@dataclass(eq=False)
class _Waiting(Generic[T, R]):
    """A request in the queue."""

    group: Hashable
    item: T
    tokens: int
    future: asyncio.Future[R] = field(repr=False)


class Batcher(Generic[T, R]):
    """Answers items of one group (a mode) together, in the order in which they came. All methods
    are those of one event loop.

    Args:
        compute: answers items of a group; runs in a thread, one call at a time.
        on_batch: is told of every batch: its requests, tokens and seconds.
    """

    def __init__(
        self,
        compute: Callable[[Hashable, Sequence[T]], Sequence[R]],
        batching: Batching,
        on_batch: Callable[[int, int, float], None] = lambda requests, tokens, seconds: None,
    ) -> None:
        self._compute = compute
        self._batching = batching
        self._on_batch = on_batch
        self._queue: deque[_Waiting[T, R]] = deque()
        self._executor = ThreadPoolExecutor(1, "tsarch-compute")
        self._worker: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._was_shared = False
        """Whether the batch before had several requests."""
        self.room = Room(batching.queue_tokens)

    @property
    def tokens(self) -> int:
        """That were let in and aren't answered: reserved, waiting, or being read."""
        return self.room.tokens

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    async def submit(self, group: Hashable, item: T, tokens: int) -> R:
        """The answer to an item.

        Raises:
            ServiceError: the queue is full (429), or never has room for so many tokens (413).
        """
        with self.room.reserved(tokens):
            own = _Waiting[T, R](group, item, tokens, asyncio.get_running_loop().create_future())
            self._queue.append(own)
            self._arrived.set()
            if self._worker is None:
                self._worker = asyncio.create_task(self._work())
            try:
                return await own.future
            finally:
                with suppress(ValueError):  # who gave up waits no longer
                    self._queue.remove(own)

    async def close(self) -> None:
        """Answer what waits, and end the thread."""
        if self._worker is not None:
            await asyncio.wait([self._worker])
        self._executor.shutdown(wait=False)

    async def _work(self) -> None:
        try:
            while self._queue:
                if self._was_shared:
                    await self._gather()
                if batch := self._take():
                    await self._answer(batch)
        finally:
            self._worker = None

    async def _gather(self) -> None:
        """Wait a moment for others, until a batch is full."""
        ends = now_s() + self._batching.wait_s
        while sum(own.tokens for own in self._queue) < self._batching.tokens:
            left = ends - now_s()
            if left <= 0:
                return
            self._arrived.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    def _take(self) -> list[_Waiting[T, R]]:
        """The next batch: the oldest request, and those of its group that fit beside it."""
        if not self._queue:
            return []
        taken, left, tokens = [self._queue.popleft()], deque[_Waiting[T, R]](), 0
        tokens = taken[0].tokens
        for own in self._queue:
            if own.group == taken[0].group and tokens + own.tokens <= self._batching.tokens:
                taken.append(own)
                tokens += own.tokens
            else:
                left.append(own)
        self._queue = left
        return taken

    async def _answer(self, batch: Sequence[_Waiting[T, R]]) -> None:
        self._was_shared = len(batch) > 1
        started = now_s()
        try:
            found = await self._computed(batch)
        except Exception as error:  # whatever models raise
            if len(batch) > 1:  # it may be the fault of one
                for own in batch:
                    await self._answer([own])
            elif not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        seconds, tokens = now_s() - started, sum(own.tokens for own in batch)
        self.room.measure(tokens, seconds)
        self._on_batch(len(batch), tokens, seconds)
        for own, answer in zip(batch, found, strict=True):
            if not own.future.done():
                own.future.set_result(answer)

    async def _computed(self, batch: Sequence[_Waiting[T, R]]) -> Sequence[R]:
        items, loop = [own.item for own in batch], asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._compute, batch[0].group, items)
