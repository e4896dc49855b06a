"""What goes wrong with runs, one case each, and what should come of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.suites.observed_run import EVERY_STEPS, FAULT_STEP, ObservedRun

_SILENT_LIMIT_S = 13.0
"""To notice a node that is silent: `failure.node_timeout_s`, and the time to suspect it and to
knock."""
_END_TIMEOUT_S = 10.0
_PREEMPTED_AFTER_S = 20.0
"""From a notice of preemption to the end of the node; clouds give 30 s and more."""
_MEMORY_BYTES = 2**23

Act = Callable[[ObservedRun], None]


@dataclass(frozen=True)
class Case:
    """Something that goes wrong, and what should come of it."""

    name: str
    culprit: str = ""
    """A regular expression that the run's message must match."""
    fault: dict[str, Any] | None = None
    """Of a rank (`tests.suites.fault_run.Fault`)."""
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
    detect_limit_s: float = 2.0
    """To notice it, unless it is a hang."""
    down_limit_s: float = 5.0
    """From noticing it to the end of the next step, on free cores."""
    repeat_limit: int = EVERY_STEPS
    """Steps that may be done twice."""


def run_out_of_memory(run: ObservedRun) -> None:
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
        psutil.Process(rank).wait(timeout=_END_TIMEOUT_S)
    except psutil.NoSuchProcess:
        pass
    finally:
        folder.rmdir()


def kill_raylet(run: ObservedRun) -> None:
    """The second node's raylet is killed; the node is started anew."""
    run.mark()
    run.cluster.kill_raylet(1)
    time.sleep(8.0)
    run.cluster.end_node(1)
    run.cluster.start_node(1)


def preempt(run: ObservedRun) -> None:
    """Ray is told that the second node will be taken away, when another one has come to its host;
    after the notice's time it is gone."""
    run.cluster.start_node(2)
    run.mark()
    run.cluster.announce_end(1, _PREEMPTED_AFTER_S)
    time.sleep(_PREEMPTED_AFTER_S)
    run.cluster.end_node(1)
    run.wait()
    run.cluster.end_node(2)
    run.cluster.start_node(1)


def kill_head(run: ObservedRun) -> None:
    """The head's GCS is killed, for good."""
    run.mark()
    run.cluster.kill(0, "gcs_server")


def start_cluster(run: ObservedRun) -> None:
    """All nodes are started anew."""
    for node in (1, 0):
        run.cluster.end_node(node)
    for node in (0, 1):
        run.cluster.start_node(node)


def unplug(run: ObservedRun) -> None:
    """The second node is cut off, and started anew after a while."""
    run.mark()
    run.cluster.hosts.set_cable(False)
    time.sleep(_SILENT_LIMIT_S + 3)
    _plug_in(run)


def unplug_for_good(run: ObservedRun) -> None:
    """The second node is cut off; it is there again only when the run is over."""
    run.mark()
    run.cluster.hosts.set_cable(False)
    run.wait()
    _plug_in(run)


def _plug_in(run: ObservedRun) -> None:
    run.cluster.end_node(1)
    run.cluster.hosts.set_cable(True)
    run.cluster.start_node(1)


def terminate(run: ObservedRun) -> None:
    """SIGTERM, as a batch system sends it."""
    run.mark()
    assert run.process is not None
    run.process.send_signal(signal.SIGTERM)


def kill_driver(run: ObservedRun) -> None:
    """SIGKILL of the driver; its ranks must end too."""
    run.mark()
    assert run.process is not None
    run.process.kill()
    run.process.wait()


def truncate(run: ObservedRun) -> None:
    """The newest checkpoint has lost the end of a file."""
    file = _largest_file(run)
    os.truncate(file, file.stat().st_size - 100)


def flip_bit(run: ObservedRun) -> None:
    """A bit of the newest checkpoint is wrong."""
    file = _largest_file(run)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()  # it may have other names
    file.write_bytes(content)


def lose_manifest(run: ObservedRun) -> None:
    """The newest checkpoint has no manifest."""
    (run.checkpoints[-1] / "manifest.json").unlink()


def _largest_file(run: ObservedRun) -> Path:
    files = run.checkpoints[-1].glob("*.safetensors")
    return max(files, key=lambda path: path.stat().st_size)


def nothing(run: ObservedRun) -> None:
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
    Case(
        "kill student without a spare",
        r"student 1 \(rank 2\) on .* was killed: its process \d+ is gone \(SIGKILL",
        {"kind": "kill", "rank": SECOND_STUDENT, "instruction": "Forward"},
        overrides=("topology.spares=0",),
        down_limit_s=10.0,
    ),
    # There is no other node, so the run waits until this one is started again.
    Case("kill raylet", r"is lost with its node", act=kill_raylet, down_limit_s=40.0),
    Case(
        "preempted",
        r"notice: .* will be taken from the cluster: its ranks move",
        act=preempt,
        overrides=("schedule.epochs=12",),  # a node takes some seconds to come
        detect_limit_s=6.0,  # Ray is asked for notices every three seconds
        down_limit_s=20.0,
        repeat_limit=0,
    ),
    Case(
        "unplug a node",
        r"is lost with its node",
        act=unplug,
        needs_cable=True,
        detect_limit_s=_SILENT_LIMIT_S,
        down_limit_s=40.0,
    ),
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
        detect_limit_s=_SILENT_LIMIT_S,
        down_limit_s=40.0,
    ),
    Case(
        "disk full",
        r"warning: no checkpoint at step \d+ .*(space|SPACE)",
        {"kind": "raise", "rank": STUDENT, "step": 40},
        overrides=("checkpoint.folder={disk}",),
        needs_root=True,
    ),
    Case(
        "kill the head's GCS",
        r"the head of the Ray cluster .* doesn't answer: ended, saved at step",
        act=kill_head,
        status=1,
        restarts=0,
        resume=start_cluster,
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
