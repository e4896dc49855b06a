"""A profiled run: a trace of every rank with instructions named, and where a step's time goes."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.helpers import tiny_config
from tsarch.launch.training import run_training
from tsarch.planning.peak import peak_flops_s
from tsarch.rank.profiling import num_flops
from tsarch.telling.profile_table import rank_table


def test_operations_are_those_of_the_shapes():
    assert num_flops("aten::mm", [[2, 3], [3, 5]]) == 60
    assert num_flops("aten::addmm", [[5], [2, 3], [3, 5]]) == 60
    assert num_flops("aten::bmm", [[7, 2, 3], [7, 3, 5]]) == 7 * 60
    assert num_flops("aten::relu", [[2, 3]]) == 0
    shape = [1, 2, 8, 4]  # batch, heads, tokens, width of a head
    forward = num_flops("aten::_scaled_dot_product_flash_attention_for_cpu", [shape] * 3)
    assert forward == 2 * (2 * 2 * 8 * 8 * 4)  # scores, and their products with the values
    name = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"
    assert num_flops(name, [shape] * 4) == 2.5 * forward


def test_a_table_has_the_time_between_instructions_and_shares_of_the_peak():
    spent = {"number": 4, "seconds": 3.0, "flops": 6e9}
    profile = {
        "rank": 0,
        "num_ticks": 2,
        "seconds": 4.0,
        "device": "cpu",
        "threads": 1,
        "instructions": [{"name": "teacher Forward", **spent}],
        "operators": [],
        "peak_flops_s": 4e9,
    }
    found = rank_table(profile)
    assert found.title == "rank 0: 2 steps of 2 s; peak 4 GFLOP/s on cpu"
    cells = [(row.name, row.seconds, row.share, row.rate, row.of_peak) for row in found.rows]
    assert cells == [
        ("teacher Forward", "1.5 s", "75.0 %", "2.0", "50 %"),
        ("between instructions", "500 ms", "25.0 %", "", ""),
        ("all", "2 s", "100.0 %", "1.5", "38 %"),
    ]
    assert rank_table({**profile, "peak_flops_s": None}).rows[0].of_peak == ""


def test_peaks_of_gpus_are_their_makers():
    assert peak_flops_s("NVIDIA H200", 1, in_bf16=True) == pytest.approx(989e12)
    assert peak_flops_s("NVIDIA A100-SXM4-80GB", 1, in_bf16=False) == pytest.approx(19.5e12)
    assert peak_flops_s("NVIDIA GeForce GT 710", 1, in_bf16=True) is None


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("runner", ["local", "processes"])
def test_a_run_is_profiled_for_a_few_steps(runner, tmp_path, capsys, forked_ranks):
    config = tiny_config(
        tmp_path,
        run={"folder": str(tmp_path / "run"), "profile_steps": 2},
        topology={"runner": runner, "spares": 0},
        schedule={"max_steps": 6},
        evaluation={"before": False},
    )
    run_training(config)
    folder = tmp_path / "run"
    profiles = json.loads((folder / "profile.json").read_text())
    assert len(profiles) == (1 if runner == "local" else 2)
    for profile in profiles:
        assert profile["num_ticks"] == 2
        assert profile["peak_flops_s"] > 0
        spent = {own["name"]: own for own in profile["instructions"]}
        stages = ("teacher", "student") if runner == "local" else (next(iter(spent)).split()[0],)
        for stage in stages:
            for name in ("Forward", "Backward"):
                own = spent[f"{stage} {name}"]
                assert own["number"] == 2
                assert own["flops"] > 0
            assert spent[f"{stage} OptimizerStep"]["seconds"] > 0
        assert sum(own["seconds"] for own in spent.values()) <= profile["seconds"]
        with gzip.open(folder / "profile" / f"rank-{profile['rank']}.json.gz") as file:
            names = {event.get("name") for event in json.load(file)["traceEvents"]}
        assert {f"tsarch: {name}" for name in spent} <= names
    assert "between instructions" in capsys.readouterr().out
