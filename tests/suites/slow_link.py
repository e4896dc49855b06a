"""What a slow network costs: a run with its teacher on one host and its student on another, over a
link of 1 Gbit/s and 1 ms, beside the same run with both on one host.

    python -m tests.suites.slow_link [--steps 40] [--turns 3]

Needs what `hosts.py` needs. The kernel needs no netem: a process carries the frames, late
(`late_cable.py`), and takes its time from the cores that train, so the cost is rather overstated.
The runs take turns, so that what else the machine does falls on both; the ratio is that of the
medians.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from tests.suites.host_project import PROJECT, Runs, equip, on_computer
from tests.suites.hosts import Host, Hosts, missing

RATE, DELAY_S = "1gbit", 1e-3
_KNOCK = """python3 -c '
import socket, statistics, time
def knock():
    started_s = time.perf_counter()
    socket.create_connection(("{}", 22)).close()
    return time.perf_counter() - started_s
print(f"{{statistics.median(knock() for _ in range(20)) * 1e3:.2f}} ms")
'"""
"""How long a connection to the ssh server takes to be made."""
_START_TIMEOUT_S = 120.0
_RUN_TIMEOUT_S = 900.0
_ENTER = "cd ~/tsarch; export RAY_AUTH_MODE=token RAY_worker_niceness=0; "


def main() -> None:
    """Measure, and print a line for each run and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    if (lacking := missing()) is not None:
        raise SystemExit(f"this machine lacks {lacking}")
    folder = Path(tempfile.mkdtemp(prefix="tsh"))
    try:
        # A way between two hosts is two cables, so each has half of the delay.
        with Hosts(folder, ["head", "one", "two"], DELAY_S / 2) as hosts:
            equip(hosts)
            _measure(hosts, given.steps, given.turns)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(hosts: Hosts, steps: int, turns: int) -> None:
    _start_ray(hosts)
    for host in hosts.all:
        hosts.switch.limit(host.pid, host.cable, RATE)
    print(f"there and back: {hosts.all[0].run(_KNOCK.format(hosts.all[1].address), 60.0).strip()}")
    speeds: dict[str, list[float]] = {"loopback": [], "link": []}
    for turn in range(turns):
        for where, student in (("loopback", "head"), ("link", "one")):
            speed = _run(hosts, f"{where}-{turn}", student, steps)
            speeds[where].append(speed)
            print(f"turn {turn}  {where:8}  {speed:8.1f} tokens/s", flush=True)
    middle = {where: statistics.median(own) for where, own in speeds.items()}
    ratio, loopback = middle["link"] / middle["loopback"], middle["loopback"]
    print(f"{RATE}, {DELAY_S * 1e3:g} ms: {ratio:.3f} of loopback's {loopback:.1f} tokens/s")


def _start_ray(hosts: Hosts) -> None:
    """A Ray on the head and one other host, each labelled with its name."""
    head, one, _ = hosts.all
    command = "ray get-auth-token --generate >/dev/null; cat ~/.ray/auth_token"
    token = hosts.computer.run(on_computer(command), 60.0).split()[-1]
    project = hosts.computer.home / PROJECT
    for host in (head, one):
        for part in ("tsarch", "cluster", "launch", "configs"):
            shutil.copytree(project / part, host.home / "tsarch" / part, symlinks=True)
        (host.home / ".ray").mkdir(mode=0o700)
        (host.home / ".ray" / "auth_token").write_text(token)
        host.own_home()
        role = "--head --port=6379 --include-dashboard=false"
        role = role if host is head else f"--address={head.address}:6379"
        _on(host, f"ray start {role} --node-ip-address={host.address} --labels=host={host.name}")


def _run(hosts: Hosts, name: str, student: str, steps: int) -> float:
    """Tokens a second of a run whose student is on a host; its teacher is on the head."""
    head = hosts.all[0]
    runs = Runs(hosts)
    settings = {
        "run.folder": runs.inside(name),
        "schedule.epochs": 100,
        "schedule.max_steps": steps,
        "evaluation.every_epochs": 100,
        "checkpoint.every_steps": 10_000,
        "topology.cpus_per_rank": 1,
        "topology.teacher.replicas": 1,
        "topology.teacher.nodes": "{host: head}",
        "topology.student.nodes": f"{{host: {student}}}",
    }
    given = " ".join(f"--set '{key}={value}'" for key, value in settings.items())
    address = f"--address {head.address}:6379"
    _on(head, f"tsarch train configs/small.yaml {given} {address}", _RUN_TIMEOUT_S)
    return float(runs.summary(name)["tokens_per_s"])


def _on(host: Host, command: str, timeout_s: float = _START_TIMEOUT_S) -> str:
    return host.run(f'{_ENTER}PATH="$PWD/.venv/bin:$PATH" {command}', timeout_s)


if __name__ == "__main__":
    main()
