"""A run with `topology: auto` on ranks: measured, placed anew, and the same as without `auto`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.helpers import tiny_raw
from tsarch.config_loading import load_config, parse_config
from tsarch.launch.training import run_training

STAGES = ("teacher", "student")


def run_auto(tmp_path: Path, **sections: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """(summary, resolved config) of a short run."""
    schedule = {"epochs": 1, "max_steps": 3}
    raw = tiny_raw(tmp_path, schedule=schedule, evaluation={"before": False}, **sections)
    summary = run_training(parse_config(raw, "auto"))
    assert not ray.is_initialized()
    config = load_config(tmp_path / "run" / "config.yaml")
    assert not config.topology.auto
    logs = tmp_path / "run" / "logs"
    assert {p.name for p in (logs / "auto").glob("*.log")} == {"rank-0.log", "rank-1.log"}
    return summary, config


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What of `metrics.jsonl` doesn't depend on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k.startswith(("loss", "grad", "step"))} for row in rows
    ]


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.usefixtures("forked_ranks")
def test_threads_of_a_cpu_and_weights_as_if_nothing_had_been_measured(tmp_path, capsys):
    summary, config = run_auto(tmp_path, topology={"auto": True, "runner": "processes"})
    balance = summary["balance"]
    assert balance["unit"] == "threads"
    threads = [getattr(config.topology, stage).threads for stage in STAGES]
    assert threads == [balance["chosen"][stage] for stage in STAGES]
    assert sum(threads) <= max(balance["supply"]["num_cores"], 2)
    for measured in balance["measured"]:
        for stage in STAGES:
            assert all(seconds > 0 for seconds in measured[stage].values())
    assert balance["chosen"]["step_s"] <= balance["plain"]["step_s"]
    out = " ".join(capsys.readouterr().out.split())
    assert "measured on one rank of each stage" in out
    assert "predicted: " in out

    again = config.run.model_copy(update={"folder": str(tmp_path / "again")})
    summary = run_training(config.model_copy(update={"run": again}))
    assert summary["balance"] is None
    assert metrics(tmp_path / "again") == metrics(tmp_path / "run")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.thorough
def test_replicas_of_a_teacher_that_has_most_of_the_work(tmp_path):
    """Four devices of half a core each: at least as many teachers as students."""
    raw = tiny_raw(tmp_path)
    deep = {**raw["teacher"]["config"], "num_hidden_layers": 8, "hidden_size": 128}
    summary, config = run_auto(
        tmp_path,
        teacher={"config": deep},
        student={"layers": [0], "alone_weight": 0.0},
        topology={"auto": True, "threads": 1},
    )
    balance = summary["balance"]
    assert balance["unit"] == "replicas"
    replicas = [getattr(config.topology, stage).replicas for stage in STAGES]
    assert replicas == [summary[stage]["replicas"] for stage in STAGES]
    assert 2 <= sum(replicas) <= balance["supply"]["num_devices"]
    (measured,) = balance["measured"]
    assert measured["teacher"]["compute_s"] > measured["student"]["compute_s"]
    assert replicas[0] >= replicas[1]
    assert summary["tied_max_abs_diff"] == 0.0
