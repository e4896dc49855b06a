"""Runs that are served by this process itself."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tsarch.config import Mode
from tsarch.errors import UserError
from tsarch.inputs.rows import Input
from tsarch.prediction.loading import Backend, Precision, folder_of, home_of, load
from tsarch.prediction.unread import OnUnread
from tsarch.run.versions import current_folder, current_name
from tsarch.serving.batcher import Batching
from tsarch.serving.engine import Answered, RunInfo
from tsarch.serving.memory import check_memory
from tsarch.serving.metrics import CacheMetrics, Metrics, QueueMetrics
from tsarch.serving.served_pair import ServedPair
from tsarch.serving.state_cache import StateCache
from tsarch.serving.stores import check_stores, open_stores
from tsarch.serving.swapping import goes_on, marks, tell_swap, version_name


@dataclass(frozen=True)
class Loading:
    """How runs are loaded; see `tsarch.load`."""

    device: str = "auto"
    precision: Precision = "fp32"
    batch_tokens: int = 4096
    backend: Backend = "torch"
    stores: tuple[str, ...] = ()
    """Folders of `tsarch read`."""


class LocalEngine:
    """Teachers and students of some runs, with their queues and a cache for all.

    Args:
        runs: name of a run → its folder, or the URL or the name on the hub of which a copy is read.
        cache_bytes: of the teacher's states that are kept at most.

    Raises:
        UserError: a run can't be loaded, there isn't memory for all, or a store is of none.
    """

    def __init__(
        self,
        runs: Mapping[str, str | Path],
        loading: Loading = Loading(),
        batching: Batching = Batching(),  # noqa: B008
        cache_bytes: int = 256 << 20,
        metrics: Metrics | None = None,
    ) -> None:
        self._runs = dict(runs)
        self._loading = loading
        self._batching = batching
        self._metrics = metrics or Metrics()
        self._cache = StateCache(cache_bytes)
        folders = [folder_of(own, loading.backend) for own in runs.values()]
        check_memory(folders, cache_bytes)
        self._loaded: dict[str, tuple[tuple[str, int, int], ...]] = {}
        """Files that were loaded."""
        self._stores = open_stores(loading.stores)
        self._served = {name: self._load(name, self._home(name)) for name in runs}
        check_stores(self._stores, {own.pair.revision for own in self._served.values()})
        self._locks = {name: asyncio.Lock() for name in runs}
        self._draining: set[asyncio.Task[None]] = set()
        self._metrics.registry.register(CacheMetrics(self._cache))
        self._metrics.registry.register(QueueMetrics(self._queues))

    def runs(self) -> tuple[RunInfo, ...]:
        """See `Engine`."""
        return tuple(own.info for own in self._served.values())

    async def predict(
        self,
        run: str,
        inputs: Sequence[Input],
        mode: Mode | None,
        on_unread: OnUnread = "error",
    ) -> Answered:
        """See `Engine`."""
        served = self._served[run]  # the version that this request meets
        with served.usage.used():
            return await served.predict(inputs, mode or served.info.default_mode, on_unread)

    async def reload(self, run: str) -> RunInfo:
        """See `Engine`."""
        async with self._locks[run]:
            old = self._served[run]
            with goes_on(old.info):
                home = await asyncio.to_thread(self._home, run)
                folder = current_folder(home)
                if marks(folder) == self._loaded[run]:
                    return old.info
                check_memory([folder], 0)
                new = await asyncio.to_thread(self._load, run, home)
            self._served[run] = new
        tell_swap(old.info, new.info, self._metrics)
        task = asyncio.create_task(self._free(old))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)
        return new.info

    async def close(self) -> None:
        """See `Engine`."""
        await asyncio.gather(*(own.drained() for own in self._served.values()), *self._draining)

    def _home(self, run: str) -> Path:
        """The run's folder; of a URL's or the hub's a copy of what is there now."""
        return home_of(self._runs[run], self._loading.backend)

    def _load(self, run: str, home: Path) -> ServedPair:
        own = self._loading
        name, folder = current_name(home), current_folder(home)
        found = marks(folder)
        try:
            pair = load(folder, own.device, own.precision, own.batch_tokens, own.backend)
        except UserError as error:
            raise UserError.single(f"run {run}", str(error)) from None
        version = version_name(name, pair.revision)
        self._loaded[run] = found
        store = self._stores.get(pair.revision)
        pair.keep_states(self._cache.part(run, pair.revision, store))
        return ServedPair(run, version, pair, self._batching, self._metrics)

    async def _free(self, old: ServedPair) -> None:
        await old.drained()
        if old.pair.revision not in {own.pair.revision for own in self._served.values()}:
            self._cache.drop(old.pair.revision)
        gc.collect()

    def _queues(self) -> dict[str, tuple[int, int]]:
        """Of each run: tokens that are let in, and requests that wait."""
        return {
            name: (own.batcher.tokens, own.batcher.num_waiting)
            for name, own in self._served.items()
        }
