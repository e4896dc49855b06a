"""Gauges of a run as Prometheus gets them: from a real Ray's node, over HTTP."""

from __future__ import annotations

import re
import time
import urllib.request

import pytest

from tests.helpers import tracked
from tests.ray_clusters import ray_cluster
from tests.test_trackers import ROW
from tsarch.cluster.authentication import loopback_only

pytestmark = [pytest.mark.ray, pytest.mark.thorough]


def test_a_node_exports_the_gauges_of_both_stages(tmp_path, monkeypatch):
    import ray

    from tsarch.cluster.run_metrics import GAUGES, RunMetrics

    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    with ray_cluster([{"num_cpus": 1}]) as cluster, monkeypatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        with loopback_only():
            ray.init(cluster.address, log_to_driver=False)
        try:
            gauges = RunMetrics(tracked(tmp_path))
            (node,) = ray.nodes()
            address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            found: set[str] = set()
            deadline_s = time.monotonic() + 120.0
            while found < {f"ray_{name}" for name in GAUGES}:
                assert time.monotonic() < deadline_s, found
                gauges.step(dict(ROW))
                gauges.evaluation("validation", 5, {"joint": {"f1": 0.5}})
                time.sleep(0.5)
                text = _get(address)
                found = set(re.findall(r'^(ray_tsarch_\w+)\{.*run="mine".*\}', text, re.M))
            for stage in ("teacher", "student"):
                assert re.search(rf'^ray_tsarch_busy_s\{{.*stage="{stage}".*\}} 1\.0$', text, re.M)
        finally:
            ray.shutdown()


def _get(address: str) -> str:
    """A node's metrics; none while its agent starts."""
    try:
        with urllib.request.urlopen(address, timeout=5.0) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""
