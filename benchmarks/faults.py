"""`make faults`: things that go wrong with runs, done to real ones on two Ray nodes, and what came
of them.

    python -m benchmarks.faults [--only NAME]…   results: benchmarks/results/faults.{json,md}
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from safetensors import safe_open

from benchmarks.fault_cluster import FaultCluster

CONFIG = Path("configs/faults.yaml")
OUTPUT = Path("benchmarks/results/faults.json")
EVERY_STEPS = 8
HANG_TIMEOUT_S = 10.0
FAULT_STEP = 22
_RUN_TIMEOUT_S = 240.0
_DETECT_LIMIT_S = 10.0
_DOWN_LIMIT_S = 60.0
_GONE_LIMIT_S = 15.0
_DISK_BYTES = 2**25
_MEMORY_BYTES = 2**23

Act = Callable[["Run"], None]


@dataclass(frozen=True)
class Case:
    """Something that goes wrong, and what should come of it."""

    name: str
    culprit: str = ""
    """A regular expression that the run's message must match."""
    fault: dict[str, Any] | None = None
    """Of a rank (`benchmarks.fault_run.Fault`)."""
    act: Act | None = None
    """Done to a run from outside, once it is at `FAULT_STEP`."""
    schedule: str = "overlapped"
    overrides: tuple[str, ...] = ()
    status: int = 0
    """Of the run that it happens to."""
    is_hang: bool = False
    restarts: int = 1
    resume: Act | None = None
    """Done before the run goes on with `--resume`, if it has to."""
    same: bool = True
    """Whether the weights must be bitwise those of a run without the fault."""
    needs_cable: bool = False
    needs_root: bool = False


@dataclass
class Outcome:
    """What came of a case."""

    name: str
    detected_s: float | None = None
    """From the fault to its being noticed."""
    down_s: float | None = None
    """From there to the end of the next training step."""
    repeated: int | None = None
    """Steps done twice."""
    same_weights: bool | None = None
    message: str = ""
    mistakes: list[str] = field(default_factory=list)
    """Why it isn't as it should be."""


class Run:
    """A run on the cluster, from outside."""

    def __init__(self, cluster: FaultCluster, folder: Path, case: Case) -> None:
        self.cluster = cluster
        self.folder = folder
        self.run_folder = folder / "run"
        self.output = folder / "output.txt"
        self.marker = folder / "fault"
        self._case = case
        self.process: subprocess.Popen[str] | None = None

    def start(self, resume: bool = False) -> None:
        """Start training, or go on."""
        faults = [] if self._case.fault is None or resume else [self._case.fault]
        marked = [{"step": FAULT_STEP, **fault, "marker": str(self.marker)} for fault in faults]
        settings = [
            f"run.folder={self.run_folder}",
            f"schedule.name={self._case.schedule}",
            f"checkpoint.every_steps={EVERY_STEPS}",
            f"failure.hang_timeout_s={HANG_TIMEOUT_S}",
            *self._case.overrides,
        ]
        command = [sys.executable, "-m", "benchmarks.fault_run", json.dumps(marked), "train"]
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
        return sorted((p.parent for p in found), key=_number_of)

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


def run_out_of_memory(run: Run) -> None:
    """A rank gets no more memory, so that the kernel kills it."""
    folder, limit = Path("/sys/fs/cgroup/tsarch-faults"), "memory.max"
    if Path("/sys/fs/cgroup/memory").is_dir():  # version 1 of control groups
        folder, limit = Path("/sys/fs/cgroup/memory/tsarch-faults"), "memory.limit_in_bytes"
    folder.mkdir()
    rank = run.ranks()[0]
    try:
        (folder / limit).write_text(str(_MEMORY_BYTES), encoding="ascii")
        run.mark()
        (folder / "cgroup.procs").write_text(str(rank), encoding="ascii")
        psutil.Process(rank).wait(timeout=_DETECT_LIMIT_S)
    except psutil.NoSuchProcess:
        pass
    finally:
        folder.rmdir()


def kill_raylet(run: Run) -> None:
    """The second node's raylet is killed; the node is started anew."""
    run.mark()
    run.cluster.kill_raylet(1)
    time.sleep(8.0)
    run.cluster.end_node(1)
    run.cluster.start_node(1)


def unplug(run: Run) -> None:
    """The second node is cut off, and started anew after a while."""
    run.mark()
    run.cluster.hosts.set_cable(False)
    time.sleep(12.0)
    _plug_in(run)


def unplug_for_good(run: Run) -> None:
    """The second node is cut off; it is there again only when the run is over."""
    run.mark()
    run.cluster.hosts.set_cable(False)
    run.wait()
    _plug_in(run)


def _plug_in(run: Run) -> None:
    run.cluster.end_node(1)
    run.cluster.hosts.set_cable(True)
    run.cluster.start_node(1)


def terminate(run: Run) -> None:
    """SIGTERM, as a batch system sends it."""
    run.mark()
    assert run.process is not None
    run.process.send_signal(signal.SIGTERM)


def kill_driver(run: Run) -> None:
    """SIGKILL of the driver; its ranks must end too."""
    run.mark()
    assert run.process is not None
    run.process.kill()
    run.process.wait()


def truncate(run: Run) -> None:
    """The newest checkpoint has lost the end of a file."""
    file = _largest_file(run)
    os.truncate(file, file.stat().st_size - 100)


def flip_bit(run: Run) -> None:
    """A bit of the newest checkpoint is wrong."""
    file = _largest_file(run)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()  # it may have other names
    file.write_bytes(content)


def lose_manifest(run: Run) -> None:
    """The newest checkpoint has no manifest."""
    (run.checkpoints[-1] / "manifest.json").unlink()


def _largest_file(run: Run) -> Path:
    files = run.checkpoints[-1].glob("*.safetensors")
    return max(files, key=lambda path: path.stat().st_size)


def nothing(run: Run) -> None:
    """Only go on."""


def _freeze(instruction: str, rank: int, schedule: str = "overlapped") -> Case:
    is_exchange = instruction.endswith("Exchange")  # two of them a step
    step = FAULT_STEP * (2 if is_exchange else 1)
    return Case(
        f"freeze in {instruction}",
        rf"\(rank {rank}\) on .* doesn't answer since .* frozen \(state: stopped\)\nIt was at "
        + instruction,
        {"kind": "freeze", "rank": rank, "instruction": instruction, "step": step},
        schedule=schedule,
        is_hang=True,
    )


def _damage(name: str, message: str, damage: Act) -> Case:
    return Case(name, message, act=terminate, status=143, restarts=0, resume=damage)


TEACHER, STUDENT, SECOND_STUDENT = 0, 1, 2
CASES = (
    Case(
        "kill teacher",
        r"teacher 0 \(rank 0\) on .* was killed: its process \d+ is gone \(SIGKILL",
        {"kind": "kill", "rank": TEACHER, "instruction": "Backward"},
    ),
    Case(
        "kill student",
        r"student 1 \(rank 2\) on .* was killed: its process \d+ is gone \(SIGKILL",
        {"kind": "kill", "rank": SECOND_STUDENT, "instruction": "Forward"},
    ),
    Case(
        "crash",
        r"student 0 \(rank 1\) on .* was killed: its process \d+ is gone \(SIGSEGV",
        {"kind": "segfault", "rank": STUDENT, "instruction": "Forward"},
    ),
    Case(
        "out of memory",
        r"was killed: its process \d+ is gone \(SIGKILL by the kernel: out of memory\)",
        act=run_out_of_memory,
        needs_root=True,
    ),
    Case(
        "exception",
        r"student 0 \(rank 1\) on .* failed: InjectedError: injected",
        {"kind": "raise", "rank": STUDENT, "instruction": "Backward"},
    ),
    Case(
        "stall",
        r"teacher 0 \(rank 0\) on .* hangs: no progress(.*\n)*.*in strike",
        {"kind": "stall", "rank": TEACHER, "instruction": "OptimizerStep"},
        is_hang=True,
    ),
    _freeze("Forward", TEACHER),
    _freeze("Backward", STUDENT),
    _freeze("SendHidden", TEACHER),
    _freeze("RecvHidden", SECOND_STUDENT),
    _freeze("OptimizerStep", STUDENT),
    _freeze("StartTiedExchange", TEACHER),
    _freeze("FinishTiedExchange", SECOND_STUDENT),
    _freeze("SendGrad", STUDENT, "joint"),
    _freeze("RecvGrad", TEACHER, "joint"),
    Case("kill raylet", r"is lost with its node", act=kill_raylet),
    Case("unplug a node", r"is lost with its node", act=unplug, needs_cable=True),
    Case(
        "unplug for good",
        r"is lost with its node(.*\n)*.*going on with 1 teacher \+ 1 student replicas",
        act=unplug_for_good,
        overrides=(
            "topology.min_replicas=1",
            "failure.node_wait_s=5",
            "teacher.dropout=0.0",
            "student.dropout=0.0",
        ),
        same=False,
        needs_cable=True,
    ),
    Case(
        "disk full",
        r"warning: no checkpoint at step \d+ .*(space|SPACE)",
        {"kind": "raise", "rank": STUDENT, "step": 40},
        overrides=("checkpoint.folder={disk}",),
        needs_root=True,
    ),
    Case("SIGTERM", r"SIGTERM: saving", act=terminate, status=143, restarts=0, resume=nothing),
    Case("kill driver", act=kill_driver, status=-9, restarts=0, resume=nothing),
    Case(
        "truncated",
        r"damaged: .* bytes, not",
        act=terminate,
        status=143,
        restarts=0,
        resume=truncate,
    ),
    Case(
        "bit flipped", r"damaged: .*SHA-256", act=terminate, status=143, restarts=0, resume=flip_bit
    ),
    Case("no manifest", act=terminate, status=143, restarts=0, resume=lose_manifest),
)


def do(case: Case, cluster: FaultCluster, folder: Path, reference: Path | None) -> Outcome:
    """Let a case happen.

    Args:
        reference: folder of the run of its schedule without a fault.
    """
    run = Run(cluster, folder, case)
    outcome = Outcome(case.name)
    run.start()
    if case.act is not None:
        run.wait_for_step(FAULT_STEP)
        case.act(run)
    status = run.wait()
    if status != case.status:
        outcome.mistakes.append(f"exit status {status}, not {case.status}")
    if case.act in (terminate, kill_driver):
        _check_gone(run, outcome)
    if case.resume is not None:
        case.resume(run)
        run.start(resume=True)
        if (status := run.wait()) != 0:
            outcome.mistakes.append(f"exit status {status} of --resume")
    _check_message(case, run, outcome)
    _check_failures(case, run, outcome)
    _check_gone(run, outcome)
    if reference is not None and run.summary:
        _check_training(case, run, reference, outcome)
    return outcome


def _check_message(case: Case, run: Run, outcome: Outcome) -> None:
    match = re.search(case.culprit, run.text)
    if match is None:
        outcome.mistakes.append(f"nothing matches {case.culprit!r}")
    elif match.group():
        line = run.text[run.text.rfind("\n", 0, match.start()) + 1 :]
        outcome.message = re.sub(r"^ *[\d.]+ s +", "", line.splitlines()[0])
    if "Traceback" in run.text and not case.is_hang and "hangs" not in run.text:
        outcome.mistakes.append("a traceback was printed")


def _check_failures(case: Case, run: Run, outcome: Outcome) -> None:
    failures = run.summary.get("failures", [])
    if len(failures) != case.restarts:
        outcome.mistakes.append(f"{len(failures)} restarts, not {case.restarts}")
    if not failures:
        return
    failure, happened_s = failures[0], run.marker.stat().st_mtime
    outcome.detected_s = failure["noticed_s"] - happened_s
    outcome.down_s = failure["down_s"]
    outcome.repeated = failure["failed_at"] - failure["resumed_at"]
    limit_s = HANG_TIMEOUT_S + 5 if case.is_hang else _DETECT_LIMIT_S
    if outcome.detected_s > limit_s:
        outcome.mistakes.append(f"detected after more than {limit_s:g} s")
    if outcome.down_s > _DOWN_LIMIT_S:
        outcome.mistakes.append(f"trains again after more than {_DOWN_LIMIT_S:g} s")
    if outcome.repeated > EVERY_STEPS and "disk" not in case.name:
        outcome.mistakes.append(f"more than {EVERY_STEPS} steps repeated")


def _check_gone(run: Run, outcome: Outcome) -> None:
    """No rank may be left."""
    until_s = time.monotonic() + _GONE_LIMIT_S
    while (left := run.ranks()) and time.monotonic() < until_s:
        time.sleep(0.2)
    if left:
        outcome.mistakes.append(f"ranks are left: {left}")


def _check_training(case: Case, run: Run, reference: Path, outcome: Outcome) -> None:
    losses, expected = losses_of(run.run_folder), losses_of(reference)
    if case.same:
        on_disk = any("checkpoint.folder" in override for override in case.overrides)
        outcome.same_weights = weights_digest(run.run_folder, on_disk) == weights_digest(
            reference, on_disk
        )
        if not outcome.same_weights:
            outcome.mistakes.append("other weights than without the fault")
        if losses != expected:
            outcome.mistakes.append("other losses than without the fault")
    elif not all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(losses, expected, strict=True)):
        outcome.mistakes.append("losses differ by more than 1e-4 from those without the fault")


def losses_of(run_folder: Path) -> list[float]:
    """Every loss of every step."""
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row[name] for row in rows for name in ("loss_teacher", "loss_student")]


def weights_digest(run_folder: Path, of_model: bool = False) -> str:
    """A hash of all tensors of the newest checkpoint: weights and optimizer state as the run ended
    with them. `of_model`: of the kept weights alone."""
    manifests = run_folder.glob("checkpoints/step-*/manifest.json")
    folders = [run_folder / "model"] if of_model else [path.parent for path in manifests]
    newest = max(folders, key=_number_of)
    digest = hashlib.sha256()
    for path in sorted(newest.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                digest.update(f"{path.name} {name}".encode())
                digest.update(file.get_tensor(name).contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def _number_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-")) if folder.name.startswith("step-") else 0


def markdown(outcomes: Sequence[Outcome], unplugged: bool) -> str:
    """The table of the README."""
    lines = [
        "| what | detected after s | trains again after s | steps repeated | weights | said |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for o in outcomes:
        numbers = [_number(o.detected_s), _number(o.down_s), _number(o.repeated, "d")]
        same = {True: "same", False: "OTHER", None: "–"}[o.same_weights]
        said = o.message.replace("|", "/") + "".join(f" **{m}**" for m in o.mistakes)
        lines.append(f"| {o.name} | {' | '.join(numbers)} | {same} | {said} |")
    where = "in network namespaces" if unplugged else "on loopback"
    return "\n".join(
        [
            f"Two Ray nodes {where}, one teacher rank and two student ranks; a checkpoint every "
            f"{EVERY_STEPS} steps, `failure.hang_timeout_s: {HANG_TIMEOUT_S:g}`. `same`: weights "
            "and optimizer state are bitwise those of a run without the fault.",
            "",
            *lines,
            "",
        ]
    )


def _number(value: float | None, form: str = ".1f") -> str:
    return "–" if value is None else format(value, form)


def run_cases(cases: Sequence[Case], folder: Path) -> list[Outcome]:
    """Let cases happen one after the other on one cluster."""
    outcomes = []
    references: dict[tuple[str, ...], Path] = {}
    # Before the cluster: a network namespace sees the mounts that there were when it was made.
    with _small_disk(folder / "disk") as disk, FaultCluster(cpus=(2, 1)) as cluster:
        for case in cases:
            reason = _left_out(case, cluster)
            if reason is not None:
                print(f"{case.name}: left out, {reason}", flush=True)
                continue
            key = (case.schedule, *(o for o in case.overrides if "dropout" in o))
            if key not in references:
                plain = Case("reference", schedule=case.schedule, overrides=key[1:], restarts=0)
                references[key] = folder / f"reference-{len(references)}"
                references[key].mkdir()
                found = do(plain, cluster, references[key], None)
                assert not found.mistakes, found
            own = folder / case.name.replace(" ", "-")
            own.mkdir()
            overrides = tuple(override.format(disk=disk) for override in case.overrides)
            placed = replace(case, overrides=overrides)
            outcomes.append(do(placed, cluster, own, references[key] / "run"))
            print(_line(outcomes[-1]), flush=True)
    return outcomes


def _left_out(case: Case, cluster: FaultCluster) -> str | None:
    """Why a case can't happen here."""
    if case.needs_cable and not cluster.can_unplug:
        return "there is no cable"
    if case.needs_root and os.geteuid() != 0:
        return "only root can do it"
    return None


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """A disk with place for two checkpoints and a half, if one can be made."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0
    try:
        yield folder / "checkpoints"
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _line(outcome: Outcome) -> str:
    numbers = f"detected {_number(outcome.detected_s)} s, again {_number(outcome.down_s)} s"
    repeated = f"repeated {_number(outcome.repeated, 'd')}, same weights {outcome.same_weights}"
    result = "; ".join(outcome.mistakes) or "as it should be"
    return f"{outcome.name}: {result} ({numbers}, {repeated})\n    {outcome.message}"


def write_results(outcomes: Sequence[Outcome], output: Path) -> None:
    """Write the results of some cases, beside those of others that are there."""
    found = {row["name"]: row for row in json.loads(output.read_text())} if output.exists() else {}
    found |= {outcome.name: asdict(outcome) for outcome in outcomes}
    rows = [found[case.name] for case in CASES if case.name in found]
    output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    unplugged = any(name.startswith("unplug") for name in found)
    table = markdown([Outcome(**row) for row in rows], unplugged)
    output.with_suffix(".md").write_text(table, encoding="utf-8")


def main(
    only: Annotated[list[str] | None, typer.Option(help="Name of a case. Default: all.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder for the runs, to look at.")] = None,
) -> None:
    """Let all cases happen and write the results."""
    cases = [case for case in CASES if only is None or case.name in only]
    folder = Path(tempfile.mkdtemp(prefix="tsarch-faults-")) if keep is None else keep
    folder.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    outcomes = run_cases(cases, folder)
    if keep is None:
        shutil.rmtree(folder)
    bad = [outcome for outcome in outcomes if outcome.mistakes]
    print(
        f"{len(outcomes)} cases in {time.monotonic() - started_s:.0f} s, {len(bad)} not as wanted"
    )
    write_results(outcomes, OUTPUT)
    if bad:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
