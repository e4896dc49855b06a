"""What works in a replica of Ray Serve: one half of a run's pair, of every version that requests
ask for, with a queue of its own. A teacher's replica keeps what it made of documents."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from tsarch.config import Mode
from tsarch.errors import UserError, one_line
from tsarch.host_memory import keep_freed_memory
from tsarch.pair.states import States
from tsarch.prediction.batch import as_json
from tsarch.prediction.loading import load_halves
from tsarch.prediction.prepared import Prepared
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.prediction.unread import OnUnread
from tsarch.run.versions import current_folder
from tsarch.serving.batcher import Batcher, Batching
from tsarch.serving.local_engine import Loading
from tsarch.serving.state_cache import StateCache
from tsarch.serving.stores import open_stores
from tsarch.topology import Reads

_UNBOUNDED = 2**62  # who asks replicas bounds what waits


@dataclass(frozen=True)
class SentStates:
    """The teacher's states of a context on their way: Ray shares arrays between processes."""

    hidden: npt.NDArray[Any]
    predictions: npt.NDArray[Any]
    are_bf16: tuple[bool, bool]
    """Whether their numbers are bits of bf16, which NumPy lacks."""

    @classmethod
    def of(cls, states: States) -> SentStates:
        """States, to be sent."""
        tensors = [torch.as_tensor(own).cpu() for own in (states.hidden, states.predictions)]
        are_bf16 = [own.dtype is torch.bfloat16 for own in tensors]
        arrays = [
            (own.view(torch.int16) if is_bf16 else own).numpy()
            for own, is_bf16 in zip(tensors, are_bf16, strict=True)
        ]
        return cls(arrays[0], arrays[1], (are_bf16[0], are_bf16[1]))

    def states(self) -> States:
        """As they were; copies, so that Ray may reuse the memory."""
        tensors = [torch.from_numpy(own.copy()) for own in (self.hidden, self.predictions)]
        return States(
            *(
                own.view(torch.bfloat16) if is_bf16 else own
                for own, is_bf16 in zip(tensors, self.are_bf16, strict=True)
            )
        )

    @property
    def num_bytes(self) -> int:
        """Of the arrays."""
        return self.hidden.nbytes + self.predictions.nbytes


@dataclass(frozen=True)
class Counts:
    """What a replica has done since it started, and keeps."""

    replica: str
    half: str
    pid: int
    hits: int = 0
    stored: int = 0
    misses: int = 0
    cache_bytes: int = 0
    cache_contexts: int = 0
    sent_bytes: int = 0
    """Of states that went to students."""
    batches: int = 0
    batch_tokens: int = 0
    batch_seconds: float = 0.0


@dataclass(frozen=True)
class Read:
    """What the teacher made of some inputs."""

    states: tuple[SentStates, ...]
    counts: Counts


@dataclass(frozen=True)
class Replied:
    """Answers to some inputs."""

    answers: dict[int, Any]
    """Number of an input → its answer in plain values."""
    problems: dict[int, str]
    """Number → what is wrong with it."""
    counts: tuple[Counts, ...]
    """Of all replicas that had a part in it."""


@dataclass(frozen=True)
class Ways:
    """Who answers a mode of a run."""

    by_pair: frozenset[Mode]
    """Modes for which the teacher's replicas have both models: texts are written by both, token by
    token."""
    with_states: frozenset[Mode]
    """Modes whose student needs the teacher's states."""


@dataclass(frozen=True)
class Way:
    """How inputs are answered; see `TrainedPair.answer`."""

    mode: Mode
    on_unread: OnUnread = "error"


@dataclass(frozen=True)
class _Item:
    prepared: Prepared
    states: tuple[SentStates, ...] | None = None


class Replica:
    """One half of a run's pair.

    Args:
        half: its name.
        halves: models that it has.
        threads: of torch.
        other: the other half, if there is one: halves that know of each other are one app.
    """

    def __init__(
        self,
        run: str,
        half: str,
        halves: Sequence[Reads],
        loading: Loading,
        batching: Batching,
        cache_bytes: int,
        threads: int,
        other: object = None,
    ) -> None:
        keep_freed_memory()
        torch.set_num_threads(threads)
        self._run, self._halves, self._loading = run, tuple(halves), loading
        self._batching = replace(batching, queue_tokens=_UNBOUNDED)
        self._cache = StateCache(cache_bytes)
        self._stores = open_stores(loading.stores)
        self._counts = Counts(_own_id(), half, os.getpid())
        self._versions: dict[str, asyncio.Future[_Version]] = {}
        self._first: _Version | None = None
        with suppress(UserError):  # `load` says why; ended, Ray would start it again and again
            self._first = self._load(str(current_folder(Path(run))))

    async def load(self, folder: str) -> Ways:
        """Have the version in a folder.

        Raises:
            UserError: it can't be read.
        """
        return (await self._version(folder)).ways()

    async def keep(self, folders: Sequence[str]) -> None:
        """Let go of all versions but those in some folders."""
        for folder in set(self._versions) - set(folders):
            version = await self._versions.pop(folder)
            await version.batcher.close()
            self._cache.drop(version.pair.revision)
        self._first = None
        gc.collect()

    async def counts(self) -> Counts:
        """See `Counts`."""
        cache = self._cache
        return replace(
            self._counts,
            hits=sum(cache.hits.values()),
            stored=sum(cache.stored.values()),
            misses=sum(cache.misses.values()),
            cache_bytes=cache.num_bytes,
            cache_contexts=len(cache),
        )

    async def states(self, folder: str, prepared: Prepared) -> Read:
        """What the teacher makes of inputs."""
        version = await self._version(folder)
        states = await version.batcher.submit(None, _Item(prepared), prepared.num_tokens)
        sent = self._counts.sent_bytes + sum(own.num_bytes for own in states)
        self._counts = replace(self._counts, sent_bytes=sent)
        return Read(states, await self.counts())

    async def answers(
        self, folder: str, prepared: Prepared, way: Way, read: Read | None = None
    ) -> Replied:
        """Answers to inputs, with what the teacher has made of them where the mode needs it."""
        version = await self._version(folder)
        item = _Item(prepared, None if read is None else read.states)
        answers, problems = await version.batcher.submit(way, item, prepared.num_tokens)
        others = () if read is None else (read.counts,)
        plain = {number: as_json(own) for number, own in answers.items()}
        return Replied(plain, problems, (*others, await self.counts()))

    async def _version(self, folder: str) -> _Version:
        if folder not in self._versions:
            first, loop = self._first, asyncio.get_running_loop()
            if first is not None and first.folder == folder:
                self._versions[folder] = loop.create_future()
                self._versions[folder].set_result(first)
            else:
                self._versions[folder] = loop.run_in_executor(None, self._load, folder)
        try:
            return await asyncio.shield(self._versions[folder])
        except Exception:
            self._versions.pop(folder, None)
            raise

    def _load(self, folder: str) -> _Version:
        own = self._loading
        try:
            pair = load_halves(
                Path(folder), self._halves, own.device, own.precision, own.batch_tokens
            )
        except UserError:
            raise
        except Exception as error:  # whatever damaged files make libraries raise
            raise UserError.single(folder, f"can't be loaded: {one_line(error)}") from None
        store = self._stores.get(pair.revision)
        pair.keep_states(self._cache.part(self._run, pair.revision, store))
        return _Version(folder, pair, self._batching, self._tell)

    def _tell(self, requests: int, tokens: int, seconds: float) -> None:
        own = self._counts
        self._counts = replace(
            own,
            batches=own.batches + 1,
            batch_tokens=own.batch_tokens + tokens,
            batch_seconds=own.batch_seconds + seconds,
        )


class _Version:
    """A version that is loaded."""

    def __init__(self, folder: str, pair: TrainedPair, batching: Batching, tell: Any) -> None:
        self.folder = folder
        self.pair = pair
        self.batcher = Batcher[_Item, Any](self._compute, batching, tell)

    def ways(self) -> Ways:
        """Who answers which mode, as far as this half knows."""
        pair = self.pair
        modes = frozenset(own for own in pair.modes if pair.reads_contexts(own))
        return Ways(modes, frozenset()) if pair.writes else Ways(frozenset(), modes)

    def _compute(self, way: Hashable, items: Sequence[_Item]) -> Sequence[Any]:
        prepared = [own.prepared for own in items]
        if way is None:
            return [tuple(map(SentStates.of, own)) for own in self.pair.states(prepared)]
        sent = [own.states for own in items if own.states is not None]
        states = [[state.states() for state in own] for own in sent] if sent else None
        assert isinstance(way, Way)
        return self.pair.answer(prepared, way.mode, states, way.on_unread)


def _own_id() -> str:
    """The replica's name on Ray Serve."""
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)
