"""A whole run on Ray, with sharded stages: its files, its trace, and its metrics from the folder
alone."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.helpers import tiny_config
from tests.test_trace import CLOCK_TOLERANCE, check_format
from tsarch.launch.training import run_training
from tsarch.run.saved_run import evaluate_run
from tsarch.telling.trace import idle_share
from tsarch.topology import Topology

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """(folder, summary)."""
    folder = tmp_path_factory.mktemp("ray-run")
    config = tiny_config(
        folder,
        run={"folder": str(folder / "run"), "trace": True},
        schedule={"name": "joint", "micro_batches": 2, "epochs": 4},
        topology={
            "device": "cpu",
            "cpus_per_rank": 0.5,
            "teacher": {"replicas": 2, "zero_stage": 3},
            "student": {"zero_stage": 2},
        },
    )
    summary = run_training(config)
    assert not ray.is_initialized()
    return folder / "run", summary


def test_its_files(run):
    folder, summary = run
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(summary["steps"]))
    assert rows[-1]["loss_teacher"] < rows[0]["loss_teacher"]
    assert summary["tied_max_abs_diff"] == 0.0
    assert summary["teacher"]["replicas"] == 2
    logs = {path.name for path in (folder / "logs").iterdir()}
    assert {name for name in logs if name.startswith("rank-")} == {
        f"rank-{r}.{kind}" for r in range(3) for kind in ("log", "times")
    }
    assert not [name for name in logs if name.endswith(".now")]
    assert summary["link_bytes_per_step"] > 0
    assert 0 < summary["tied_bytes_per_step"] < 3 * 30522 * 32 * 4 / 4


def test_one_process_evaluates_it_again(run):
    folder, summary = run
    again = evaluate_run(folder, "test").evaluation
    for mode, metrics in summary["after"].items():
        for name, value in metrics.items():
            assert math.isclose(again.metrics[mode][name], value, abs_tol=1e-12), (mode, name)


def test_its_bubble_is_the_idle_time_of_its_trace(run):
    folder, summary = run
    rows = check_format(folder / "trace.json", Topology.pair(2, 1))
    assert {flow["name"] for flow in rows["s"]} == {"hidden states", "gradient"}
    assert idle_share(rows["X"]) == pytest.approx(summary["bubble_fraction"], abs=CLOCK_TOLERANCE)
    epochs: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in rows["X"]:
        epochs[event["args"]["epoch"]].append(event)
    spans_us = (
        max(e["ts"] + e["dur"] for e in own) - min(e["ts"] for e in own) for own in epochs.values()
    )
    assert sum(spans_us) / 1e6 == pytest.approx(summary["pipeline_s"], rel=CLOCK_TOLERANCE)
    # What lies outside: telling the ranks to begin, and handing the last reports over.
    assert summary["pipeline_s"] <= summary["train_s"]
    report = (folder / "report.html").read_text()
    assert all(f">{name}<" in report for name in ("teacher 0", "teacher 1", "student 0"))
