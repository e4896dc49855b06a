"""What Prometheus may ask of a run on Ray: gauges among the metrics of the node of its driver.

`grafana-run.json` beside this file is a board that shows them. Ray exports each as `ray_…`; a run's
go about 20 s after it has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ray.util.metrics import Gauge

from tsarch.config import Mode
from tsarch.records import TickReport
from tsarch.telling.step_table import StepRecord
from tsarch.telling.tracker import Metrics, TrackedRun

GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "tsarch_step": ("Steps that are done.", ()),
    "tsarch_loss": ("Loss of the last step, by term.", ("term",)),
    "tsarch_grad_norm": ("Gradient norm of the last step.", ("stage",)),
    "tsarch_learning_rate_factor": ("Of the peak rates.", ()),
    "tsarch_skipped": ("Updates that the last step left out.", ()),
    "tsarch_tokens_per_s": ("Real tokens a second in the last step.", ()),
    "tsarch_step_s": ("Seconds of the last step.", ()),
    "tsarch_busy_s": ("Of them a rank's work, averaged over its stage.", ("stage",)),
    "tsarch_real_share": ("Real tokens over computed positions.", ("stage",)),
    "tsarch_sent_bytes": ("Of the last step, over all ranks.", ("path",)),
    "tsarch_wait_s": ("Waiting of all ranks in the last step.", ("path",)),
    "tsarch_score": ("Of the last evaluation.", ("split", "mode", "metric")),
}
"""Name → what it tells, and its labels besides `run`."""
_PATHS = ("link", "tied")


class RunMetrics:
    """A tracker that keeps the newest numbers of a run among Ray's metrics."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run.name
        self._stages = [stage.name for stage in run.topology.stages]
        self._gauges = {
            name: Gauge(name, what, tag_keys=("run", *labels))
            for name, (what, labels) in GAUGES.items()
        }

    def ticks(self, reports: Sequence[TickReport], epoch: int) -> None:
        """There are no metrics of ticks."""

    def step(self, row: StepRecord) -> None:
        """The step's numbers, those that are finite."""
        for name, labels, value in _values(row, self._stages):
            if value is not None:
                self._set(name, float(value), **labels)

    def evaluation(self, split: str, step: int, metrics: Mapping[Mode, Metrics]) -> None:
        """Each metric of each mode."""
        for mode, values in metrics.items():
            for metric, value in values.items():
                self._set("tsarch_score", value, split=split, mode=mode, metric=metric)

    def texts(self, when: str, texts: Sequence[Mapping[str, str]]) -> None:
        """There are no metrics of texts."""

    def rewind(self, step: int, num_evaluations: int) -> None:
        """The next step is the newest."""

    def close(self, is_complete: bool) -> None:
        """Ray forgets them by itself."""

    def _set(self, name: str, value: float, **labels: str) -> None:
        self._gauges[name].set(value, tags={"run": self._run, **labels})


def _values(
    row: StepRecord, stages: Sequence[str]
) -> Iterator[tuple[str, dict[str, str], float | None]]:
    """Gauge, labels and value of each number of a step."""
    yield "tsarch_step", {}, (row["step"] or 0) + 1
    yield "tsarch_step_s", {}, row["wall_s"]
    for name in ("learning_rate_factor", "skipped", "tokens_per_s"):
        yield f"tsarch_{name}", {}, row[name]
    for name, value in row.items():
        if name.startswith("loss_"):
            yield "tsarch_loss", {"term": name.removeprefix("loss_")}, value
    for stage in stages:
        yield "tsarch_grad_norm", {"stage": stage}, row.get(f"grad_norm_{stage}")
        yield "tsarch_busy_s", {"stage": stage}, row[f"busy_{stage}_s"]
        yield "tsarch_real_share", {"stage": stage}, row[f"real_share_{stage}"]
    for path in _PATHS:
        yield "tsarch_sent_bytes", {"path": path}, row[f"{path}_bytes"]
        yield "tsarch_wait_s", {"path": path}, row[f"{path}_wait_s"]
