"""cluster/slurm.sh, with a `srun` and a `scontrol` that start real processes on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from tests.helpers import ROOT, tiny_raw

SCRIPT = ROOT / "cluster" / "slurm.sh"
TIMEOUT_S = 300.0
SRUN = """#!/bin/bash
# As srun with one task: the host is told to the command, which gets this process's signals.
while [[ "$1" == --* ]]; do
  case "$1" in --nodelist=*) SLURMD_NODENAME="${1#--nodelist=}" ;; esac
  shift
done
export SLURMD_NODENAME
echo "$SLURMD_NODENAME: $*" >> "$SRUN_LOG"
exec "$@"
"""
SCONTROL = """#!/bin/bash
[ "$1 $2" = "show hostnames" ] && tr , '\n' <<< "$3"
"""


def test_it_is_bash():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    directives = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {line.split("=")[0] for line in directives} >= {
        "#SBATCH --nodes",
        "#SBATCH --ntasks-per-node",
        "#SBATCH --signal",
    }


@pytest.mark.parametrize(("arguments", "expected"), [([], "usage: "), (["a"], "no .venv/bin/ray")])
def test_what_is_missing_is_told_before_anything_starts(tmp_path, arguments, expected):
    done = subprocess.run(
        [str(SCRIPT), *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert expected in done.stderr


class Allocation:
    """Two hosts of Slurm, both this machine; what is started has a mark in its environment."""

    def __init__(self, folder: Path, short: Path) -> None:
        self.folder, self._mark = folder, short.name
        (folder / "bin").mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        (folder / ".venv").symlink_to(sys.prefix)
        free = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = free | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_TMPDIR": str(short),
            "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "one,two",
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_CPUS_PER_TASK": "1",
            "SRUN_LOG": str(folder / "srun.log"),
            "TEACHER_NODES": "1",
            "MARK": self._mark,
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The script, as Slurm starts it."""
        return subprocess.Popen(
            [str(SCRIPT), *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def processes(self) -> list[psutil.Process]:
        """What of it still runs."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("MARK") == self._mark:
                    found.append(process)
        return found


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Allocation]:
    short = Path(tempfile.mkdtemp(prefix="tss", dir="/tmp"))
    own = Allocation(tmp_path, short)
    yield own
    for process in own.processes():
        with suppress(psutil.Error):
            process.kill()
    shutil.rmtree(short, ignore_errors=True)


def write_config(folder: Path, **sections: object) -> Path:
    stages = {stage: {"nodes": {"tsarch-stage": stage}} for stage in ("teacher", "student")}
    raw = tiny_raw(folder, topology={"runner": "ray", **stages}, **sections)  # type: ignore[arg-type]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(raw))
    return folder / "tiny.yaml"


@pytest.mark.ray
@pytest.mark.slow
class TestOnTwoHosts:
    def test_a_run_has_a_ray_on_each_and_nothing_is_left(self, allocation, tmp_path):
        config = write_config(tmp_path, schedule={"epochs": 1})
        with allocation.start(str(config)) as script:
            output, _ = script.communicate(timeout=TIMEOUT_S)
        assert script.returncode == 0, output
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] > 0
        assert allocation.processes() == []
        log = (tmp_path / "srun.log").read_text()
        assert "one: ray start --head" in log
        assert "two: ray start --address=" in log
        assert log.count("--labels=tsarch-stage=teacher") == 1
        assert log.count("--labels=tsarch-stage=student") == 1

    @pytest.mark.thorough
    def test_slurms_signal_saves_a_checkpoint(self, allocation, tmp_path):
        config = write_config(tmp_path, schedule={"epochs": 2000})
        rows = tmp_path / "run" / "metrics.jsonl"
        with allocation.start(str(config)) as script:
            deadline_s = time.monotonic() + TIMEOUT_S
            while not rows.exists() or not rows.read_text():
                assert script.poll() is None, script.communicate()
                assert time.monotonic() < deadline_s
                time.sleep(0.2)
            script.send_signal(signal.SIGTERM)
            output, _ = script.communicate(timeout=TIMEOUT_S)
        assert script.returncode == 128 + signal.SIGTERM, output
        assert any((tmp_path / "run" / "checkpoints").iterdir())
        assert allocation.processes() == []

    @pytest.mark.thorough
    def test_a_mistake_is_the_scripts_status(self, allocation, tmp_path):
        with allocation.start(str(tmp_path / "none.yaml")) as script:
            output, _ = script.communicate(timeout=TIMEOUT_S)
        assert script.returncode == 2, output
        assert "none.yaml: can't be read" in output
        assert allocation.processes() == []
