"""The quick half of `make faults`: one run that a rank's death, an exception and a frozen rank
happen to, against the same run in peace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from tests.helpers import ROOT, tiny_raw
from tests.suites.fault_cases import CASES
from tests.suites.faults import Outcome, markdown, write_results
from tests.suites.observed_run import losses_of, same_weights
from tsarch.config_loading import load_config
from tsarch.launch.training import run_training

EVERY_STEPS = 4
HANG_TIMEOUT_S = 6.0


def train_with_faults(config: Path, run: Path, faults: list[dict[str, object]]) -> str:
    """What a run of its own process prints."""
    command = [sys.executable, "-m", "tests.suites.fault_run", json.dumps(faults), "train"]
    command += [str(config), "--set", f"run.folder={run}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.replicas(1, 1, runner="ray")
@pytest.mark.usefixtures("lent_ranks")
def test_a_run_comes_through_three_failures_as_if_nothing_had_been(tmp_path):
    raw = tiny_raw(
        tmp_path,
        teacher={"dropout": 0.1},
        student={"dropout": 0.1},
        schedule={"epochs": 6, "micro_batches": 2},
        evaluation={"before": False, "every_epochs": 6},
        checkpoint={"every_steps": EVERY_STEPS, "at_epochs": False, "every_s": None},
        failure={"hang_timeout_s": HANG_TIMEOUT_S},
        topology={"threads": 1},
    )
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(raw), encoding="utf-8")
    kinds = [
        ("kill", 1, 7, "Forward"),
        ("raise", 0, 15, "Backward"),
        ("freeze", 1, 23, "RecvHidden"),
    ]
    faults = [
        {
            "kind": kind,
            "rank": rank,
            "step": step,
            "instruction": at,
            "marker": f"{tmp_path}/{kind}",
        }
        for kind, rank, step, at in kinds
    ]
    peaceful, run = tmp_path / "run", tmp_path / "run-with-faults"
    run_training(load_config(config))
    output = train_with_faults(config, run, faults)
    assert same_weights(run, peaceful)
    assert losses_of(run) == losses_of(peaceful)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["restarts"] == len(summary["failures"]) == 3
    said = ["was killed", "InjectedError: injected", "frozen (state: stopped)"]
    for (kind, rank, _, _), failure, words in zip(kinds, summary["failures"], said, strict=True):
        assert f"(rank {rank})" in failure["cause"]
        # How soon is a matter of the machine's load (`make faults` measures it), by what is not.
        assert words in failure["cause"]
        assert failure["noticed_s"] > (tmp_path / kind).stat().st_mtime
        assert failure["down_s"] > 0
        pid = int((tmp_path / kind).read_text(encoding="ascii"))
        assert not psutil.pid_exists(pid)
    for _, _, step, at in kinds[::2]:
        assert f"It was at {at}(step={step}" in output, output
    assert not list((run / "logs").glob("*.now"))


def test_the_suite_has_a_case_for_each_kind_of_instruction():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    frozen = {name.removeprefix("freeze in ") for name in names if name.startswith("freeze")}
    assert frozen == {
        "Forward",
        "Backward",
        "SendHidden",
        "RecvHidden",
        "SendGrad",
        "RecvGrad",
        "OptimizerStep",
        "StartTiedExchange",
        "FinishTiedExchange",
    }


def test_the_table_shows_what_is_not_as_it_should_be():
    good = Outcome("kill", 0.1, 12.34, 3, True, "student 0 | was killed")
    bad = Outcome("stall", same_weights=False, mistakes=["exit status 1, not 0"])
    text = markdown([good, bad], unplugged=False)
    assert "| kill | 0.1 | 12.3 | 3 | same | student 0 / was killed |" in text
    assert "| stall | – | – | – | OTHER |  **exit status 1, not 0** |" in text
    assert "on loopback" in text


def test_cases_done_again_replace_their_results(tmp_path):
    output = tmp_path / "faults.json"
    write_results([Outcome("SIGTERM"), Outcome("kill teacher", 3.0)], output)
    write_results([Outcome("kill teacher", 1.0)], output)
    rows = json.loads(output.read_text(encoding="utf-8"))
    assert [(row["name"], row["detected_s"]) for row in rows] == [
        ("kill teacher", 1.0),
        ("SIGTERM", None),
    ]
