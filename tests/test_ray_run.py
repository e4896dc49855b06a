"""A whole run on Ray, with sharded stages: its files, and its metrics from the folder alone."""

from __future__ import annotations

import json
import math

import pytest
import ray

from launch.training import run_training
from tests.helpers import tiny_config
from tsarch.run.saved_run import evaluate_run

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize("zero_stages", [(3, 0), (0, 2)])
def test_a_run_on_ray_evaluates_again_without_it(tmp_path, zero_stages):
    teacher, student = zero_stages
    config = tiny_config(
        tmp_path,
        schedule={"epochs": 4},
        topology={
            "device": "cpu",
            "cpus_per_rank": 0.5,
            "teacher": {"replicas": 2, "zero_stage": teacher},
            "student": {"zero_stage": student},
        },
    )
    summary = run_training(config)
    assert not ray.is_initialized()
    folder = tmp_path / "run"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(summary["steps"]))
    assert rows[-1]["loss_teacher"] < rows[0]["loss_teacher"]
    assert summary["tied_max_abs_diff"] == 0.0
    assert summary["teacher"]["replicas"] == 2
    assert {p.name for p in (folder / "logs").iterdir()} == {f"rank-{r}.log" for r in range(3)}
    assert summary["link_bytes_per_step"] > 0
    assert 0 < summary["tied_bytes_per_step"] < 3 * 30522 * 32 * 4 / 4
    _, again = evaluate_run(folder, "test")
    for mode, metrics in summary["after"].items():
        for name, value in metrics.items():
            assert math.isclose(again.metrics[mode][name], value, abs_tol=1e-12), (mode, name)
