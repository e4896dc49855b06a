"""The teacher's states of documents, as many as fit; those that were not asked for longest go."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict

from tsarch.pair.answering import StateStore
from tsarch.pair.states import States

_ENTRY_BYTES = 1024
"""Of an entry beside its tensors."""


class StateCache:
    """A store for several pairs; threads may share it.

    Args:
        capacity_bytes: of all states; 0: nothing is kept.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._kept: OrderedDict[tuple[str, bytes], States] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0
        self.hits: defaultdict[str, int] = defaultdict(int)
        """By run."""
        self.stored: defaultdict[str, int] = defaultdict(int)
        """Those that a store had."""
        self.misses: defaultdict[str, int] = defaultdict(int)

    def __len__(self) -> int:
        return len(self._kept)

    def part(self, run: str, revision: str, store: StateStore | None = None) -> CachePart:
        """What a pair puts there and finds, there or in a store."""
        return CachePart(self, run, revision, store)

    def get(
        self, run: str, key: tuple[str, bytes], store: StateStore | None = None
    ) -> States | None:
        """States that are kept, or that a store has."""
        with self._lock:
            states = self._kept.get(key)
            if states is not None:
                self.hits[run] += 1
                self._kept.move_to_end(key)
                return states
        states = None if store is None else store.get(key[1])
        with self._lock:
            counts = self.misses if states is None else self.stored
            counts[run] += 1
        return states

    def put(self, key: tuple[str, bytes], states: States) -> None:
        """Keep states, and let others go for them."""
        size = _size(states)
        if size > self.capacity_bytes:
            return
        with self._lock:
            if (old := self._kept.pop(key, None)) is not None:
                self.num_bytes -= _size(old)
            self._kept[key] = states
            self.num_bytes += size
            while self.num_bytes > self.capacity_bytes:
                _, oldest = self._kept.popitem(last=False)
                self.num_bytes -= _size(oldest)

    def drop(self, revision: str) -> None:
        """Let go of all that a pair of these weights put there."""
        with self._lock:
            for key in [own for own in self._kept if own[0] == revision]:
                self.num_bytes -= _size(self._kept.pop(key))


class CachePart:
    """The part of one pair: the same text under other weights is another one's."""

    def __init__(
        self, cache: StateCache, run: str, revision: str, store: StateStore | None
    ) -> None:
        self._cache = cache
        self._run = run
        self._revision = revision
        self._store = store

    def get(self, context: bytes) -> States | None:
        """States of a context that are kept."""
        return self._cache.get(self._run, (self._revision, context), self._store)

    def put(self, context: bytes, states: States) -> None:
        """Keep states of a context."""
        self._cache.put((self._revision, context), states)


def _size(states: States) -> int:
    return states.num_bytes + _ENTRY_BYTES
