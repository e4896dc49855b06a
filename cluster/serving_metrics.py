"""What Prometheus may ask of replicas: told with their answers, and counted every few seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from tsarch.cluster.serving_replica import Counts

_LABELS = ("run", "half", "replica")
_COUNTERS = (
    ("cache_hits", "hits", "Contexts whose states were kept."),
    ("cache_stored", "stored", "Contexts whose states a store had."),
    ("cache_misses", "misses", "Contexts that the teacher had to read."),
    ("sent_bytes", "sent_bytes", "Of states that went from teachers to students."),
    ("batches", "batches", "That were read."),
    ("replica_tokens", "batch_tokens", "That were read, padding apart."),
    ("replica_seconds", "batch_seconds", "That reading took."),
)
_GAUGES = (
    ("cache_bytes", "cache_bytes", "Of the states that are kept."),
    ("cache_contexts", "cache_contexts", "Whose states are kept."),
)


class FleetMetrics:
    """Tells a registry of the replicas that live."""

    def __init__(self) -> None:
        self.lost: defaultdict[str, int] = defaultdict(int)
        """Run → times that work was asked again, because a replica was lost."""
        self._counts: dict[tuple[str, str], Counts] = {}

    def tell(self, run: str, counts: Sequence[Counts]) -> None:
        """Take in what replicas say of themselves."""
        for own in counts:
            known = self._counts.get((run, own.replica))
            if known is None or own.batches >= known.batches:  # answers overtake one another
                self._counts[run, own.replica] = own

    def replace(self, run: str, counts: Sequence[Counts]) -> None:
        """The same, of all replicas of a run that live."""
        names = {own.replica for own in counts}
        for key in [own for own in self._counts if own[0] == run and own[1] not in names]:
            del self._counts[key]
        self.tell(run, counts)

    def collect(self) -> Iterator[Metric]:
        """All counts as they are now."""
        for name, field, what in _COUNTERS:
            family = CounterMetricFamily(f"tsarch_{name}", what, labels=_LABELS)
            self._fill(family, field)
            yield family
        for name, field, what in _GAUGES:
            gauge = GaugeMetricFamily(f"tsarch_{name}", what, labels=_LABELS)
            self._fill(gauge, field)
            yield gauge
        alive = GaugeMetricFamily("tsarch_replicas", "That live.", labels=("run", "half"))
        numbers: defaultdict[tuple[str, str], int] = defaultdict(int)
        for (run, _), own in self._counts.items():
            numbers[run, own.half] += 1
        for (run, half), number in numbers.items():
            alive.add_metric([run, half], number)
        yield alive
        lost = CounterMetricFamily("tsarch_asked_again", "Work of lost replicas.", labels=("run",))
        for run, number in self.lost.items():
            lost.add_metric([run], number)
        yield lost

    def _fill(self, family: CounterMetricFamily | GaugeMetricFamily, field: str) -> None:
        for (run, replica), own in self._counts.items():
            family.add_metric([run, own.half, replica], getattr(own, field))
