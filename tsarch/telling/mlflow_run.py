"""MLflow: a run on a tracking server for each run here. The one file that imports mlflow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from tsarch.telling.once import Once, Points
from tsarch.telling.tracker import TrackedRun

_MOST_METRICS = 1000
_MOST_PARAMS = 100
"""Of a call: https://mlflow.org/docs/latest/api_reference/rest-api.html#request-limits"""
_MOST_CHARACTERS = 6000
"""Of a parameter."""


class _MlflowRun:
    """A run of an experiment."""

    def __init__(self, run: TrackedRun, known: str | None) -> None:
        self._client = MlflowClient(run.tracking.mlflow_uri)
        if known is not None:
            self.id = known
            self._client.update_run(known, status="RUNNING")
            return
        self.id = str(self._client.create_run(self._experiment(run), run_name=run.name).info.run_id)
        params = [Param(k, str(v)[:_MOST_CHARACTERS]) for k, v in run.config.items()]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self.id, params=params[start : start + _MOST_PARAMS])

    def add(self, points: Sequence[Points]) -> None:
        """In as few calls as may be."""
        now_ms = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now_ms, step)
            for step, values in points
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self.id, metrics[start : start + _MOST_METRICS])

    def close(self, is_complete: bool) -> None:
        """A run that isn't complete counts as failed there, until it goes on."""
        self._client.set_terminated(self.id, "FINISHED" if is_complete else "FAILED")

    def _experiment(self, run: TrackedRun) -> str:
        """Its id; made if it isn't there."""
        name = run.tracking.project
        found = self._client.get_experiment_by_name(name)
        made = self._client.create_experiment(name) if found is None else found.experiment_id
        return str(made)


def open_mlflow(run: TrackedRun) -> Once:
    """The tracker."""
    return Once(run, "mlflow", partial(_MlflowRun, run))
