"""Requests that wait are read together by tokens; the queue is bounded, and none gets lost."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tsarch.serving.batcher import Batcher, Batching
from tsarch.serving.engine import ServiceError
from tsarch.serving.room import Room


class Held:
    """Computes, once it is let go."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[str]]] = []
        self.go = threading.Event()

    def __call__(self, group, items):
        assert self.go.wait(10)
        self.batches.append((group, list(items)))
        if "bad" in items:
            raise RuntimeError("bad")
        return [own.upper() for own in items]


async def until(true) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


async def submitted(batcher: Batcher, first, others) -> list[asyncio.Task]:
    """The first is being read, and the others wait."""
    tasks = [asyncio.create_task(batcher.submit(*first))]
    await until(lambda: batcher.tokens and not batcher.num_waiting)
    tasks += [asyncio.create_task(batcher.submit(*own)) for own in others]
    await until(lambda: batcher.num_waiting == len(others))
    return tasks


def test_what_waits_is_read_together_by_mode_and_tokens():
    async def main() -> None:
        held = Held()
        told: list[tuple[int, int]] = []
        batcher = Batcher(held, Batching(tokens=10), lambda n, tokens, _: told.append((n, tokens)))
        asked = [("x", "a", 4), ("x", "b", 4), ("y", "c", 4), ("x", "d", 4), ("x", "e", 40)]
        asked += [("x", "f", 6)]
        tasks = await submitted(batcher, asked[0], asked[1:])
        assert batcher.tokens == 62
        held.go.set()
        assert await asyncio.gather(*tasks) == list("ABCDEF")
        assert held.batches == [
            ("x", ["a"]),
            ("x", ["b", "d"]),
            ("y", ["c"]),
            ("x", ["e"]),
            ("x", ["f"]),
        ]
        assert told == [(1, 4), (2, 8), (1, 4), (1, 40), (1, 6)]
        assert (batcher.tokens, batcher.num_waiting) == (0, 0)
        await batcher.close()

    asyncio.run(main())


def test_a_full_queue_says_when_to_come_again():
    async def main() -> None:
        held = Held()
        batcher = Batcher(held, Batching(queue_tokens=100))
        first = asyncio.create_task(batcher.submit("x", "a", 100))
        await asyncio.sleep(0)
        with pytest.raises(ServiceError, match="100 tokens are waiting already") as caught:
            await batcher.submit("x", "b", 1)
        assert caught.value.status == 429
        assert caught.value.retry_after_s >= 1
        with pytest.raises(ServiceError) as caught, batcher.room.reserved_for("word"):
            pass
        assert caught.value.status == 429
        with pytest.raises(ServiceError, match="of which 100 are read at most") as caught:
            await batcher.submit("x", "c", 101)
        assert caught.value.status == 413
        held.go.set()
        assert await first == "A"
        assert await batcher.submit("x", "b", 100) == "B"
        with batcher.room.reserved_for("x" * 240):
            assert batcher.tokens == 60
        await batcher.close()

    asyncio.run(main())


def test_a_guess_alone_refuses_nobody_for_good_where_queues_are_elsewhere():
    room = Room(100)
    with room.reserved_for(["x" * 4000]) as counted:
        assert room.tokens == 100
        with pytest.raises(ServiceError) as caught, room.reserved_for(["a word"]):
            pass
        assert caught.value.status == 429
        counted(7)
        assert room.tokens == 7
        with pytest.raises(ServiceError) as caught:
            counted(101)
        assert caught.value.status == 413
    assert (room.tokens, room.num_requests) == (0, 0)


def test_one_bad_request_does_not_fail_its_neighbours():
    async def main() -> None:
        held = Held()
        batcher = Batcher(held, Batching())
        others = [("x", own, 1) for own in ("a", "bad", "b")]
        tasks = await submitted(batcher, ("x", "first", 1), others)
        held.go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [found[0], found[1], found[3]] == ["FIRST", "A", "B"]
        assert isinstance(found[2], RuntimeError)
        await batcher.close()

    asyncio.run(main())


def test_who_gives_up_is_not_read():
    async def main() -> None:
        held = Held()
        batcher = Batcher(held, Batching())
        first, second = await submitted(batcher, ("x", "a", 1), [("x", "b", 1)])
        second.cancel()
        await until(second.done)
        assert (batcher.tokens, batcher.num_waiting) == (1, 0)
        held.go.set()
        assert await first == "A"
        assert held.batches == [("x", ["a"])]
        await batcher.close()

    asyncio.run(main())


def test_closing_answers_what_waits():
    async def main() -> None:
        held = Held()
        batcher = Batcher(held, Batching(tokens=1))
        tasks = await submitted(batcher, ("x", "a", 1), [("x", own, 1) for own in "bc"])
        held.go.set()
        await batcher.close()
        assert await asyncio.gather(*tasks) == ["A", "B", "C"]

    asyncio.run(main())
