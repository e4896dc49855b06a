"""What Prometheus may ask a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from tsarch.serving.state_cache import StateCache

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_TOKENS = (16, 64, 256, 1024, 4096, 16_384, 65_536)
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "tsarch_requests",
            "Requests by what became of them.",
            ["path", "run", "status"],
            registry=self.registry,
        )
        self.swaps = Counter(
            "tsarch_swaps", "Versions that took another's place.", ["run"], registry=self.registry
        )
        self.seconds = self._histogram(
            "request_seconds", "From a request to its answer.", ["path", "run"], _SECONDS
        )
        self.batch_tokens = self._histogram(
            "batch_tokens", "Tokens read together.", ["run"], _TOKENS
        )
        self.batch_requests = self._histogram(
            "batch_requests", "Requests read together.", ["run"], _REQUESTS
        )
        self.batch_seconds = self._histogram(
            "batch_seconds", "That a batch took.", ["run"], _SECONDS
        )

    def _histogram(
        self, name: str, what: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> Histogram:
        return Histogram(f"tsarch_{name}", what, labels, buckets=buckets, registry=self.registry)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


class CacheMetrics:
    """Tells a registry of a cache."""

    def __init__(self, cache: StateCache) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        """Hits, misses, bytes and entries as they are now."""
        cache = self._cache
        for name, what, counts in (
            ("hits", "Contexts whose states were kept.", cache.hits),
            ("stored", "Contexts whose states a store had.", cache.stored),
            ("misses", "Contexts that the teacher had to read.", cache.misses),
        ):
            family = CounterMetricFamily(f"tsarch_cache_{name}", what, labels=["run"])
            for run, count in dict(counts).items():
                family.add_metric([run], count)
            yield family
        for name, what, value in (
            ("bytes", "Of the states that are kept.", cache.num_bytes),
            ("capacity_bytes", "Of states at most.", cache.capacity_bytes),
            ("contexts", "Whose states are kept.", len(cache)),
        ):
            yield GaugeMetricFamily(f"tsarch_cache_{name}", what, value=value)


class QueueMetrics:
    """Tells a registry of queues.

    Args:
        queues: gives of each run the tokens that were let in, and the requests that wait.
    """

    def __init__(self, queues: Callable[[], Mapping[str, tuple[int, int]]]) -> None:
        self._queues = queues

    def collect(self) -> Iterator[Metric]:
        """Tokens and requests as they are now."""
        tokens = GaugeMetricFamily(
            "tsarch_queue_tokens", "That were let in and aren't answered.", labels=["run"]
        )
        requests = GaugeMetricFamily("tsarch_queue_requests", "That wait.", labels=["run"])
        for run, (num_tokens, num_waiting) in self._queues().items():
            tokens.add_metric([run], num_tokens)
            requests.add_metric([run], num_waiting)
        yield tokens
        yield requests
