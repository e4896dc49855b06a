"""`make soak`: half an hour of training with a fault about every minute, and what it cost.

    python -m tests.suites.soak [--minutes 30] [--seed 0]

Results: tests/suites/results/soak.{json,md}.

First the same run without faults, which says what the weights should be and how long it takes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from tests.suites.fault_cases import kill_driver, kill_raylet, terminate, unplug
from tests.suites.fault_cluster import FaultCluster
from tests.suites.observed_run import ObservedRun, losses_of, same_weights

OUTPUT = Path("tests/suites/results/soak.json")
_EVERY_S = (45.0, 75.0)
"""Shortest and longest time from a fault to the next."""
_USEFUL_SHARE = 0.8
"""Of the time, about: so many epochs are trained."""
_LOOK_S = 0.05
_PLACEMENT_GROUPS = (
    "import ray; ray.init('auto', log_to_driver=False, logging_level='ERROR'); "
    "from ray.util import placement_group_table; "
    "print(sum(g['state'] != 'REMOVED' for g in placement_group_table().values()))"
)


@dataclass
class Disturbance:
    """A fault, and what it cost."""

    kind: str
    at_s: float
    """Since the run's first step."""
    at_step: int
    down_s: float | None = None
    """From the fault to the next step, whichever that is."""
    repeated_s: float = 0.0
    """From there until the run was where it had been."""


@dataclass
class Soak:
    """What came of it."""

    seed: int
    steps: int
    undisturbed_s: float
    """From the first step to the last."""
    disturbed_s: float
    same_weights: bool
    same_losses: bool
    left: list[str]
    """What was left over."""
    disturbances: list[Disturbance] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Time that the undisturbed run took / time that the disturbed one took."""
        return self.undisturbed_s / self.disturbed_s


def kill_rank(run: ObservedRun, rng: random.Random) -> None:
    """SIGKILL of a rank."""
    os.kill(rng.choice(run.ranks()), signal.SIGKILL)


def freeze_rank(run: ObservedRun, rng: random.Random) -> None:
    """SIGSTOP of a rank."""
    os.kill(rng.choice(run.ranks()), signal.SIGSTOP)


Disturb = Callable[[ObservedRun, random.Random], None]
DISTURBANCES: dict[str, Disturb] = {
    "kill rank": kill_rank,
    "freeze rank": freeze_rank,
    "kill raylet": lambda run, _: kill_raylet(run),
    "unplug": lambda run, _: unplug(run),
    "SIGTERM": lambda run, _: terminate(run),
    "kill driver": lambda run, _: kill_driver(run),
}


class Progress:
    """Follows `metrics.jsonl`, which gets shorter when a run goes back to a checkpoint."""

    def __init__(self, run: ObservedRun) -> None:
        self._run = run
        self._num_rows = 0
        self._open: Disturbance | None = None
        self.first_s: float | None = None
        self.last_s = 0.0
        self._back_s = 0.0

    @property
    def num_rows(self) -> int:
        """Steps that the file tells of."""
        return self._num_rows

    def look(self) -> None:
        """See whether there are more steps, or fewer."""
        found, now_s = self._run.num_rows, time.monotonic()
        grown, self._num_rows = found > self._num_rows, found
        if not grown:
            return
        self.first_s = self.first_s or now_s
        self.last_s = now_s
        if self._open is not None:
            self._note(self._open, now_s - self.first_s, found)

    def disturbed(self, kind: str) -> Disturbance:
        """A fault happens now."""
        assert self.first_s is not None
        self._open = Disturbance(kind, time.monotonic() - self.first_s, self._num_rows)
        return self._open

    @property
    def is_back(self) -> bool:
        """Whether the last fault is over."""
        return self._open is None

    def _note(self, disturbance: Disturbance, at_s: float, num_rows: int) -> None:
        if disturbance.down_s is None:
            if num_rows > disturbance.at_step and at_s - disturbance.at_s < 1.0:
                return  # steps that were done when it happened
            disturbance.down_s, self._back_s = at_s - disturbance.at_s, at_s
        disturbance.repeated_s = at_s - self._back_s
        if num_rows > disturbance.at_step:
            self._open = None


def train(run: ObservedRun, disturb: Callable[[Progress], None]) -> float:
    """Let a run train to its end, going on with `--resume` where it was ended; seconds from its
    first step to its last."""
    run.start()
    progress = Progress(run)
    while not run.summary:
        assert run.process is not None
        if run.process.poll() is not None and not run.summary:
            if run.process.returncode not in (128 + signal.SIGTERM, -signal.SIGKILL):
                raise RuntimeError(f"status {run.process.returncode}:\n{run.text[-3000:]}")
            run.start(resume=True)
        progress.look()
        disturb(progress)
        time.sleep(_LOOK_S)
    run.wait()
    assert progress.first_s is not None
    return progress.last_s - progress.first_s


class Storm:
    """Makes faults happen at random times."""

    def __init__(self, run: ObservedRun, seed: int, kinds: list[str]) -> None:
        self.disturbances: list[Disturbance] = []
        self._run = run
        self._rng = random.Random(seed)
        self._kinds = kinds
        self._next_s: float | None = None

    def __call__(self, progress: Progress) -> None:
        """Called often while the run trains."""
        now_s = time.monotonic()
        if progress.first_s is None or not progress.is_back:
            return
        if self._next_s is None:
            self._next_s = now_s + self._rng.uniform(*_EVERY_S)
        if now_s < self._next_s:
            return
        kind = self._rng.choice(self._kinds)
        print(f"{time.strftime('%T')} step {progress.num_rows}: {kind}", flush=True)
        self.disturbances.append(progress.disturbed(kind))
        self._next_s = now_s + self._rng.uniform(*_EVERY_S)
        DISTURBANCES[kind](self._run, self._rng)


def leftovers() -> set[str]:
    """Shared-memory segments and temporary folders on this machine that a run could leave."""
    found = {str(path) for path in Path("/dev/shm").glob("*")}
    return found | {str(path) for path in Path(tempfile.gettempdir()).glob("tsarch-*")}


def soak(minutes: float, seed: int, folder: Path) -> Soak:
    """The run without faults, then the same with them."""
    before = leftovers()
    with FaultCluster(cpus=(2, 1)) as cluster:
        reference = _undisturbed(cluster, folder, minutes)
        print(f"undisturbed: {reference.epochs} epochs in {reference.seconds:.0f} s", flush=True)
        kinds = [kind for kind in DISTURBANCES if cluster.can_unplug or kind != "unplug"]
        run = _run(cluster, folder / "disturbed", reference.epochs)
        storm = Storm(run, seed, kinds)
        disturbed_s = train(run, storm)
        time.sleep(5.0)
        left = [f"rank {pid}" for pid in run.ranks()] + _placement_groups(cluster)
    left += sorted(leftovers() - before)
    return Soak(
        seed,
        int(run.summary["steps"]),
        reference.seconds,
        disturbed_s,
        same_weights(run.run_folder, reference.folder),
        losses_of(run.run_folder) == losses_of(reference.folder),
        left,
        storm.disturbances,
    )


class _Reference(NamedTuple):
    """The run without faults."""

    folder: Path
    epochs: int
    seconds: float


def _undisturbed(cluster: FaultCluster, folder: Path, minutes: float) -> _Reference:
    """Do the run without faults, unless `folder` has it from another soak of these minutes."""
    note, own = folder / f"undisturbed-{minutes:g}.json", folder / "undisturbed"
    if not note.exists():
        trial = _run(cluster, folder / "trial", 3)
        epoch_s = train(trial, lambda _: None) / 3
        epochs = max(3, round(minutes * 60 * _USEFUL_SHARE / epoch_s))
        print(f"epochs of {epoch_s:.1f} s: {epochs} of them", flush=True)
        seconds = train(_run(cluster, own, epochs), lambda _: None)
        note.write_text(json.dumps([epochs, seconds]), encoding="utf-8")
    epochs, seconds = json.loads(note.read_text(encoding="utf-8"))
    return _Reference(own / "run", epochs, seconds)


def _run(cluster: FaultCluster, folder: Path, epochs: int) -> ObservedRun:
    folder.mkdir(parents=True)
    settings = (f"schedule.epochs={epochs}", f"evaluation.every_epochs={epochs}")
    return ObservedRun(cluster, folder, settings=settings)


def _placement_groups(cluster: FaultCluster) -> list[str]:
    asked = cluster.run([sys.executable, "-c", _PLACEMENT_GROUPS], stdout=subprocess.PIPE)
    number = asked.communicate(timeout=60)[0].split()[-1]
    return [] if number == "0" else [f"{number} placement groups"]


def markdown(result: Soak) -> str:
    """The table of the results."""
    down = sum(d.down_s or 0.0 for d in result.disturbances)
    repeated = sum(d.repeated_s for d in result.disturbances)
    rest = result.disturbed_s - result.undisturbed_s - down - repeated
    lines = ["| fault | times | down, mean s | repeating, mean s |", "| --- | --- | --- | --- |"]
    for kind in DISTURBANCES:
        own = [d for d in result.disturbances if d.kind == kind]
        if own:
            means = [sum(d.down_s or 0.0 for d in own), sum(d.repeated_s for d in own)]
            listed = " | ".join(f"{mean / len(own):.1f}" for mean in means)
            lines.append(f"| {kind} | {len(own)} | {listed} |")
    return "\n".join(
        [
            f"{result.steps} steps took {result.disturbed_s / 60:.1f} min with "
            f"{len(result.disturbances)} faults, {result.undisturbed_s / 60:.1f} min without: "
            f"goodput {result.goodput:.0%}. Lost: {down / 60:.1f} min down (noticing the fault and "
            f"starting again), {repeated / 60:.1f} min repeating steps, {rest / 60:.1f} min other. "
            f"Weights and optimizer state bitwise the same: {result.same_weights}; losses: "
            f"{result.same_losses}. Left over: {', '.join(result.left) or 'nothing'}.",
            "",
            *lines,
            "",
        ]
    )


def main(
    minutes: Annotated[float, typer.Option(help="How long with faults, about.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of the faults.")] = 0,
    keep: Annotated[Path | None, typer.Option(help="Folder for the runs, to look at.")] = None,
    output: Annotated[Path, typer.Option(help="Where results go.")] = OUTPUT,
) -> None:
    """Train with faults and write the results."""
    folder = Path(tempfile.mkdtemp(prefix="tsoak-")) if keep is None else keep
    result = soak(minutes, seed, folder)
    if keep is None:
        shutil.rmtree(folder)
    row: dict[str, Any] = {**asdict(result), "goodput": result.goodput}
    output.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))
    if result.left or not result.same_weights or not result.same_losses:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
