"""A training run on the cluster of `fault_cluster`, seen from outside: processes, files, output."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tests.suites.fault_cluster import FaultCluster

CONFIG = Path("configs/faults.yaml")
EVERY_STEPS = 8
HANG_TIMEOUT_S = 10.0
FAULT_STEP = 22
_RUN_TIMEOUT_S = 240.0


class ObservedRun:
    """A run on the cluster, from outside."""

    def __init__(
        self,
        cluster: FaultCluster,
        folder: Path,
        fault: Mapping[str, Any] | None = None,
        settings: Sequence[str] = (),
    ) -> None:
        self.cluster = cluster
        self.folder = folder
        self.run_folder = folder / "run"
        self.output = folder / "output.txt"
        self.marker = folder / "fault"
        self._fault = fault
        self._settings = settings
        self.process: subprocess.Popen[str] | None = None

    def start(self, resume: bool = False) -> None:
        """Start training, or go on."""
        faults = [] if self._fault is None or resume else [self._fault]
        marked = [{"step": FAULT_STEP, **fault, "marker": str(self.marker)} for fault in faults]
        settings = [
            f"run.folder={self.run_folder}",
            f"checkpoint.every_steps={EVERY_STEPS}",
            f"failure.hang_timeout_s={HANG_TIMEOUT_S}",
            *self._settings,
        ]
        command = [sys.executable, "-m", "tests.suites.fault_run", json.dumps(marked), "train"]
        command += [str(CONFIG), "--address", self.cluster.address]
        command += [word for setting in settings for word in ("--set", setting)]
        with self.output.open("a", encoding="utf-8") as file:
            self.process = self.cluster.run(
                command + ["--resume"] * resume, stdout=file, stderr=subprocess.STDOUT
            )

    def wait(self, timeout_s: float = _RUN_TIMEOUT_S) -> int | None:
        """Exit status; None: it took too long, and was killed."""
        assert self.process is not None
        try:
            return self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    def wait_for_step(self, step: int) -> None:
        """Wait until a step is done.

        Raises:
            RuntimeError: the run ended before.
        """
        assert self.process is not None
        while self.num_rows <= step:
            if self.process.poll() is not None:
                raise RuntimeError(f"the run ended before step {step}:\n{self.text[-2000:]}")
            time.sleep(0.05)

    def mark(self) -> None:
        """Note that the fault happens now."""
        self.marker.write_text("outside\n", encoding="ascii")

    @property
    def num_rows(self) -> int:
        """Steps in `metrics.jsonl`."""
        path = self.run_folder / "metrics.jsonl"
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    @property
    def text(self) -> str:
        """All that was printed."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    @property
    def summary(self) -> dict[str, Any]:
        """`summary.json`, if the run got so far."""
        path = self.run_folder / "summary.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, the newest last."""
        found = self.run_folder.glob("checkpoints/step-*/manifest.json")
        return sorted((p.parent for p in found), key=step_of)

    def ranks(self) -> list[int]:
        """Process ids of this cluster's ranks that are there."""
        found = []
        for process in self.cluster.processes():
            try:
                name = "".join(process.cmdline()[:1])
            except Exception:  # it has ended meanwhile
                continue
            if name.startswith("ray::") and "Worker" in name:
                found.append(process.pid)
        return found


def losses_of(run_folder: Path) -> list[float]:
    """Every loss of every step."""
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row[name] for row in rows for name in ("loss_teacher", "loss_student")]


def same_weights(run_folder: Path, other: Path, of_model: bool = False) -> bool:
    """Whether all tensors of two runs (weights and optimizer state) are bitwise the same, in the
    newest checkpoint that both have: one that had to end early, after its last step, has another
    one more. `of_model`: in the kept weights alone."""
    if of_model:
        return _digest(run_folder / "model") == _digest(other / "model")
    found, expected = (_checkpoints(own) for own in (run_folder, other))
    newest = max(found.keys() & expected.keys(), default=None)
    return newest is not None and _digest(found[newest]) == _digest(expected[newest])


def _checkpoints(run_folder: Path) -> dict[int, Path]:
    """Step → folder of each complete checkpoint."""
    manifests = run_folder.glob("checkpoints/step-*/manifest.json")
    return {step_of(path.parent): path.parent for path in manifests}


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                digest.update(f"{path.name} {name}".encode())
                digest.update(file.get_tensor(name).contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def step_of(folder: Path) -> int:
    """Number of a checkpoint's folder; 0 of another folder."""
    return int(folder.name.removeprefix("step-")) if folder.name.startswith("step-") else 0
