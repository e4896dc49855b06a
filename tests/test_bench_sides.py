"""The speed benchmark: arithmetic and table on made-up runs, and every peer on a tiny job."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks import since
from benchmarks.bench_job import JOINT_MICRO_BATCHES, BenchJob, Counts
from benchmarks.matrix_peak import flops_per_token, peak_flops
from benchmarks.ours import local_config, time_crew, with_schedule
from benchmarks.pipeline import SCRIPTS, article_run
from benchmarks.processes import SideError, run_module, tail
from benchmarks.side_table import NAMES, markdown, reasons
from benchmarks.sides import (
    SideFailure,
    SideRun,
    factors,
    pipeline_figures,
    read_runs,
    summarise,
    write_runs,
)
from tests.helpers import ROOT, local_crew, tiny_raw
from tsarch.blueprint import resolve
from tsarch.config_loading import load_config
from tsarch.records import IGNORED


def a_run(side, tokens=1000, positions=(1100, 1200), wall_s=2.0, core_s=3.0, busy=None, steps=4):
    return SideRun(side, steps, tokens, *positions, wall_s, core_s, busy or {})


def test_speed_is_the_product_of_its_three_factors():
    run, reference = a_run("x", 900, (1500, 1400), 3.0, 3.3), a_run("overlapped")
    found = factors(run, reference)
    assert found["cores"] == pytest.approx(1.1 / 1.5)
    assert found["padding"] < 1
    product = found["cores"] * found["work"] * found["padding"]
    assert product == pytest.approx(run.tokens_per_s / reference.tokens_per_s)


def test_shares():
    run = a_run("x")
    assert run.tokens_per_s == 500
    assert run.step_s == 0.5
    assert run.padded_share == pytest.approx(1 - 2000 / 2300)
    assert run.idle_share == pytest.approx(0.25)
    assert a_run("x", core_s=4.2).idle_share == 0.0


def test_runs_survive_their_file(tmp_path):
    runs = [a_run("x", busy={"teacher": 1.0, "student": 2.0})]
    write_runs(runs, tmp_path / "runs.json")
    assert read_runs(tmp_path / "runs.json") == runs


def turns():
    busy = {"teacher": 1.6, "student": 1.8}
    walls = (2.0, 2.2, 1.9)
    return [
        {
            "overlapped": a_run("overlapped", wall_s=w, core_s=3.4, busy=busy),
            "sequential": a_run("sequential", wall_s=1.8 * w, core_s=3.4, busy=busy),
            "joint": a_run("joint", wall_s=1.2 * w, core_s=4.0, busy=busy),
            "trainer": a_run("trainer", wall_s=1.5 * w, core_s=3.0 * w),
        }
        for w in walls
    ]


def test_the_summary_has_medians_and_ratios_of_the_same_turn():
    summary = summarise(turns(), "overlapped", [1e-3] * 3)
    assert summary["overlapped"]["tokens_per_s"] == 500
    assert summary["overlapped"]["speed_ratio"] == 1.0
    assert summary["trainer"]["speed_ratio"] == pytest.approx(1 / 1.5)
    assert summary["overlapped"]["peak_share"] == pytest.approx(0.5)
    assert len(summary["trainer"]["repeats"]) == 3


def test_how_near_the_schedules_come_to_their_bounds():
    figures = pipeline_figures(summarise(turns(), "overlapped", [1e-3] * 3), micro_batches=8)
    assert figures["bound"] == pytest.approx(3.4 / 1.8)
    assert figures["overlapped_over_sequential"] == pytest.approx(1.8)
    assert figures["overlapped_step_over_slower_stage"] == pytest.approx(0.5 / 0.45)
    assert figures["joint_ideal_idle_share"] == pytest.approx(1 / 9)
    assert figures["joint_idle_share"] == pytest.approx(1 - 4.0 / 4.8)
    assert pipeline_figures({"overlapped": {}}, 8) == {}


def table_of(failed):
    return markdown(summarise(failed, "overlapped", [1e-3] * 3), 3, 4, "bf16", [1e12] * 3, 1e9)


def test_the_table_tells_a_failed_side_from_its_error():
    failed = turns()
    failed[1]["trainer"] = SideFailure("trainer", "lines\nValueError: no | such thing")
    table = table_of(failed)
    assert "failed" in table
    assert "ValueError: no / such thing" in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4
    assert {row.count("|") for row in rows} == {11}


def test_the_table_survives_a_failed_reference():
    failed = turns()
    for turn in failed:
        turn["overlapped"] = SideFailure("overlapped", "RuntimeError: gone")
    table = table_of(failed)
    assert "RuntimeError: gone" in table
    assert "Idle share of `joint`" not in table


def test_reasons_are_the_notable_ratios_largest_first():
    values = {"factors": {"cores": 0.52, "work": 1.01, "padding": 0.8}}
    assert reasons(values) == "0.52 × cores at work; 0.80 × tokens a position"
    assert reasons({}) == "–"


def test_a_token_needs_six_operations_a_weight(tmp_path):
    blueprint = resolve(load_config(tiny_job(tmp_path)))
    layer = 4 * 32 * 32 + 2 * 32 * 64
    maps = 2 * 32 * 32 + 3 * 32  # bridge and shortcut, and heads of one label
    needed = flops_per_token(blueprint)
    assert 6 * 5 * layer < needed <= 6 * (5 * layer + maps)
    assert peak_flops("fp32", 0.05) > 1e9


def test_every_side_has_a_name():
    assert {side for script in SCRIPTS for side in script.sides} | {"article"} == set(NAMES)


def test_the_articles_loop_as_a_side():
    result = {"num_padded_tokens": 4096, "train_s": 2.0, "num_steps": 2, "num_tokens": 1000}
    run = article_run(result | {"num_threads": 2})
    assert run.padded_share == pytest.approx(1 - 1000 / 4096)
    assert run.idle_share == 0.0


def test_the_tail_of_a_log_ends_at_its_last_error():
    log = "\n".join([*(f"line {i}" for i in range(30)), "ValueError: why", "=====", "after"])
    assert tail(log).endswith("ValueError: why")
    assert len(tail(log).splitlines()) == 15


def test_a_side_that_takes_too_long_is_ended(tmp_path):
    with pytest.raises(SideError, match=r"timeit: took more than 1 s"):
        run_module("timeit", ["import time; time.sleep(99)"], tmp_path / "log", 1.0)
    with pytest.raises(SideError, match=r"json.tool: exit status 2"):
        run_module("json.tool", ["--no-such-option"], tmp_path / "log", 60.0)


def tiny_job(folder: Path, **more) -> Path:
    """A config file of the benchmark's job on tiny models."""
    raw = tiny_raw(
        folder,
        student={"teacher_dropout": 0.0, "alone_weight": 0.0, "fed_weight": 1.0},
        distillation={"weight": 0.0},
        topology={"threads": 1},
        **more,
    )
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_ranks_share_a_step_out_without_losing_a_token(tmp_path):
    job = BenchJob.load(tiny_job(tmp_path))
    for step in range(3):
        (whole,) = job.tensors(step)
        # More micro-batches than contexts: some are empty.
        parts = [b for rank in range(2) for b in job.tensors(step, rank, 2, num_micro_batches=8)]
        assert any(b.num_tokens == 0 for b in parts)
        total = sum((b.counts for b in parts), Counts(0, 0, 0))
        assert total.num_tokens == whole.counts.num_tokens
        for batch in [whole, *parts]:
            for group in batch.windows:
                here = (group.places >= 0) & (group.mask == 1)
                assert bool(here[group.mask == 1].all()) or batch.num_tokens == 0
                assert (batch.ids.flatten()[group.places[here]] == group.ids[here]).all()
                assert (batch.labels.flatten()[group.places[here]] == group.labels[here]).all()


def test_a_rank_may_have_no_context(tmp_path):
    job = BenchJob.load(tiny_job(tmp_path))
    num_ranks = len(job.plan.contexts(0)) + 1
    shares = [job.tensors(0, rank, num_ranks) for rank in range(num_ranks)]
    idle = [batch for (batch,) in shares if batch.num_tokens == 0]
    assert idle
    assert all(bool((batch.labels == IGNORED).all()) for batch in idle)
    assert all(batch.ids.shape == (1, 1) for batch in idle)


def test_local_measures_the_steps_that_it_was_told_to(tmp_path):
    job = BenchJob.load(tiny_job(tmp_path))
    config = local_config(job.config)
    run = time_crew(local_crew(config), "local", job, range(1, 3), True)
    wanted = [int(job.split.context_lengths[job.plan.contexts(step)].sum()) for step in (1, 2)]
    assert run.num_tokens == sum(wanted)
    assert run.num_steps == len(run.losses) == 2
    assert run.padded_share == 0  # its attention reads sequences one by one


def run_script(
    module: str, config: Path, folder: Path, steps: int, warm_up: int, precision: str = "fp32"
):
    """The runs of a side's script."""
    output = folder / "runs.json"
    arguments = ["--config", str(config), "--output", str(output)]
    arguments += ["--steps", str(steps), "--warm-up", str(warm_up), "--precision", precision]
    on_ranks = next(script.on_ranks for script in SCRIPTS if script.module == module)
    run_module(module, arguments, folder / "log", 500.0, on_ranks)
    return read_runs(output)


@pytest.mark.thorough
@pytest.mark.ranks
@pytest.mark.parametrize("side", ["pipeline", "accelerate", "trainer"])
def test_peers_train_in_bf16(tmp_path, side):
    path = tiny_job(tmp_path, data={"batch_tokens": 960})
    (run,) = run_script(f"benchmarks.peer_{side}", path, tmp_path, 1, 1, "bf16")
    assert run.num_tokens > 0


@pytest.mark.thorough
def test_trainer_runs(tmp_path):
    (run,) = run_script("benchmarks.peer_trainer", tiny_job(tmp_path), tmp_path, 2, 1)
    assert run.num_tokens > 0
    assert run.wall_s > 0
    assert 0 <= run.padded_share < 0.6


@pytest.mark.thorough
@pytest.mark.ranks
def test_accelerate_runs_on_both_shares_of_a_batch(tmp_path):
    path = tiny_job(tmp_path)
    (run,) = run_script("benchmarks.peer_accelerate", path, tmp_path, 2, 1)
    job = BenchJob.load(path)
    wanted = [job.split.context_lengths[job.plan.contexts(step)].sum() for step in (1, 2)]
    assert run.num_tokens == sum(wanted)


@pytest.mark.thorough
@pytest.mark.ranks
def test_deepspeeds_pipeline_has_the_losses_of_joint(tmp_path):
    path = tiny_job(
        tmp_path,
        data={"batch_tokens": 960, "unpadded": False},  # as the pipeline computes
        optimizer={"weight_decay": 0.0, "clip_norm": 0.0},
        learning_rate={"warmup": 0.0, "decay": "constant"},
        schedule={"epochs": 4},
    )
    (run,) = run_script("benchmarks.peer_pipeline", path, tmp_path, 6, 0)
    job = BenchJob.load(path)
    config = with_schedule(local_config(job.config), "joint")
    crew = local_crew(config)
    ours = time_crew(crew, "joint", job, range(6), one_process=True)
    assert run.losses == pytest.approx(ours.losses, rel=1e-5)
    same = ("num_tokens", "teacher_positions", "student_positions")
    assert [getattr(run, name) for name in same] == [getattr(ours, name) for name in same]


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.ray
def test_all_of_our_sides_run(tmp_path):
    runs = run_script("benchmarks.ours", tiny_job(tmp_path), tmp_path, 2, 1)
    assert [run.side for run in runs] == ["sequential", "overlapped", "joint", "local"]
    assert len({run.num_tokens for run in runs}) == 1
    assert runs[0].losses[0] == pytest.approx(runs[3].losses[0], rel=1e-5)
    joint = load_config(tmp_path / "job.yaml")
    assert with_schedule(joint, "joint").schedule.micro_batches == JOINT_MICRO_BATCHES


def test_the_bench_job_is_plain():
    config = load_config(ROOT / "configs" / "bench.yaml")
    assert config.student.alone_weight == config.distillation.weight == 0
    assert config.student.teacher_dropout == 0
    assert config.precision == "fp32"


def test_then_and_now_are_compared_turn_by_turn():
    found = {"then": [100.0, 50.0, 80.0], "now": [220.0, 100.0, 200.0]}
    rows = since.table(found, "then").splitlines()
    assert rows[2:] == ["| then | 80 | 1.00 (1.00–1.00) |", "| now | 200 | 2.20 (2.00–2.50) |"]
