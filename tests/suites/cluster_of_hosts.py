"""`make test-cluster`: a cluster of three hosts, made and used as docs/cluster.md says.

The hosts are namespaces of this machine (`hosts.py`), which needs root, an ssh server and rsync;
without, all is skipped. One test goes on where the one before has ended, so they run in order, and
the first failure ends them. Half an hour on two cores that do much else.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.suites.host_project import CLUSTER_FILE, Runs, documented, equip, on_computer
from tests.suites.hosts import Hosts, missing

HEADING = "Hosts of your own, by ssh"
COMMANDS = documented(HEADING)
UP_TIMEOUT_S = 300.0
RUN_TIMEOUT_S = 400.0
END_TIMEOUT_S = 180.0
SHORT = "--set schedule.max_steps=8"
STEPS = 8
CHATTER = re.compile(r"node_provider|updater|command_runner|docker\.py|Shared conn|To ensure|rsync")
LOSSES = ("loss_teacher", "loss_student", "loss_student_alone", "loss_distillation")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """The computer of whoever uses the cluster, a head and two other hosts."""
    if (lacking := missing()) is not None:
        pytest.skip(f"this machine lacks {lacking}")
    folder = Path(tempfile.mkdtemp(prefix="tsh"))
    try:
        with Hosts(folder, ["head", "one", "two"]) as own:
            equip(own)
            yield own
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def runs(hosts: Hosts) -> Runs:
    return Runs(hosts)


def command(start: str) -> str:
    """The documented command that starts so, with the small config for its own."""
    (found,) = [own for own in COMMANDS if own.startswith(start)]
    return found.replace("configs/quickstart.yaml", "configs/small.yaml")


def run(hosts: Hosts, line: str, timeout_s: float = RUN_TIMEOUT_S, check: bool = True) -> str:
    """A command on the computer, in the project's folder; it and its output are shown."""
    show(f"$ {line}")
    output = hosts.computer.run(on_computer(line), timeout_s, check)
    show(output)
    return output


def show(text: str) -> None:
    """What is done, without what Ray and ssh say of every step."""
    chatter = re.compile(
        r"node_provider|updater|command_runner|docker\.py|Shared connection|To ensure"
    )
    print(*(line for line in text.splitlines() if not chatter.search(line)), sep="\n", flush=True)


def wait_until(holds: Callable[[], Any], timeout_s: float, what: str) -> float:
    """Wait for something; seconds that it took."""
    started_s = time.monotonic()
    while not holds():
        assert time.monotonic() - started_s < timeout_s, f"not within {timeout_s} s: {what}"
        time.sleep(1.0)
    return time.monotonic() - started_s


def status(hosts: Hosts) -> str:
    """`ray status`, as documented."""
    return run(hosts, command("ray exec"), 120.0, check=False)


def num_active(hosts: Hosts) -> int:
    found = re.search(r"(\d+) local\.cluster\.node\s*\nPending", status(hosts).replace("\r", ""))
    return int(found[1]) if found else 0


def wait_for_hosts(hosts: Hosts, number: int) -> None:
    took_s = wait_until(lambda: num_active(hosts) == number, UP_TIMEOUT_S, f"{number} hosts")
    print(f"{number} hosts are in after {took_s:.0f} s more")


def tell(started_s: float, what: str) -> None:
    print(f"{what}: {time.monotonic() - started_s:.0f} s")


def placed_apart(hosts: Hosts, runs: Runs, name: str) -> None:
    """Teachers on hosts of their own, the student on the one that is labelled for it."""
    seats = {(seat["stage"], seat["node"]) for seat in runs.seats(name)}
    head, one, two = (host.address for host in hosts.all)
    assert seats == {("teacher", head), ("teacher", one), ("student", two)}


def equal(runs: Runs, name: str, other: str, relative: float) -> None:
    """Two runs have the same losses at every step."""
    mine, others = runs.steps(name), runs.steps(other)
    assert [row["step"] for row in mine] == [row["step"] for row in others] == [*range(STEPS)]
    for row, wanted in zip(mine, others, strict=True):
        for key in LOSSES:
            assert row[key] == pytest.approx(wanted[key], rel=relative), (row["step"], key)


def test_all_hosts_come_up_by_themselves(hosts: Hosts) -> None:
    started_s = time.monotonic()
    run(hosts, command("ray get-auth-token"))
    run(hosts, command("ray up"), UP_TIMEOUT_S)
    tell(started_s, "`ray up`")
    wait_for_hosts(hosts, 3)


def test_ray_submit_trains_on_all_and_equals_one_process(hosts: Hosts, runs: Runs) -> None:
    output = run(hosts, f"{command('ray submit')} {SHORT}")
    placed_apart(hosts, runs, "first")
    assert re.search(r"host +teacher +student", output), "the picture of who is where"
    assert runs.summary("first")["tied_max_abs_diff"] == 0.0
    local = "--set topology.runner=local --set run.folder=/mnt/shared/local"
    run(hosts, f"tsarch train configs/small.yaml {local} {SHORT}")
    # AdamW's first steps magnify rounding: see docs/results.md.
    equal(runs, "first", "local", relative=1e-4)


def test_a_job_of_rays_own_does_the_same(hosts: Hosts, runs: Runs) -> None:
    with hosts.computer.beside(on_computer(command("ray dashboard").removesuffix("&"))):
        wait_until(lambda: "ray_version" in version(hosts), 60.0, "the dashboard's tunnel")
        run(hosts, f"{command('ray job submit')} {SHORT}")
    equal(runs, "second", "first", relative=0.0)


def version(hosts: Hosts) -> str:
    ask = "import urllib.request as r; print(r.urlopen(r.Request(u, headers=h)).read())"
    url = "u = 'http://127.0.0.1:8265/api/version'"
    token = "h = {'Authorization': 'Bearer ' + open('.ray/auth_token').read().strip()}"
    return hosts.computer.run(f'python3 -c "{url}; {token}; {ask}"', 30.0, check=False)


def test_tsarch_submit_survives_a_lost_connection(hosts: Hosts, runs: Runs) -> None:
    line = on_computer(f"{command('tsarch submit')} {SHORT}")
    with hosts.computer.start_command(line) as submitting:
        wait_until(lambda: runs.steps("third"), RUN_TIMEOUT_S, "a first step")
        hosts.switch.set_cable(hosts.computer.cable, up=False)
        wait_until(lambda: len(runs.steps("third")) == STEPS, RUN_TIMEOUT_S, "the run's end")
        time.sleep(20.0)  # ssh notices after 15 s
        hosts.switch.set_cable(hosts.computer.cable, up=True)
        output, _ = submitting.communicate(timeout=RUN_TIMEOUT_S)
    show(output)
    assert submitting.returncode == 0, output
    assert "connection lost" in output
    assert "connected again" in output
    assert output.count("run folder: /mnt/shared/third") == 1, "nothing is written twice"
    equal(runs, "third", "first", relative=0.0)
    listed = run(hosts, command("tsarch jobs"))
    assert listed.count("SUCCEEDED") == 2


def test_stop_saves_a_checkpoint_and_attach_tells_all(hosts: Hosts, runs: Runs) -> None:
    long = "--set run.folder=/mnt/shared/long"
    cluster = f"--cluster {CLUSTER_FILE}"
    output = run(hosts, f"tsarch submit configs/small.yaml {cluster} {long} --no-follow")
    (name,) = re.findall(r"job (small-\w+) is submitted", output)
    wait_until(lambda: len(runs.steps("long")) > 2, RUN_TIMEOUT_S, "steps")
    stopped = run(hosts, f"tsarch stop {name} {cluster}")
    assert "SIGTERM: saving a checkpoint" in stopped
    attached = run(hosts, f"tsarch attach {name} {cluster}", check=False)
    assert "run folder: /mnt/shared/long" in attached
    assert f"job {name}: STOPPED" in attached
    (done,) = re.findall(r"saved at step (\d+)", stopped)
    output = run(hosts, f"tsarch submit configs/small.yaml {cluster} {long} --resume")
    assert f"step-{done}" in output
    assert [row["step"] for row in runs.steps("long")] == [*range(runs.summary("long")["steps"])]


def test_a_host_is_unplugged_while_a_run_trains(hosts: Hosts, runs: Runs) -> None:
    line = on_computer(
        f"tsarch submit configs/small.yaml --cluster {CLUSTER_FILE} "
        "--set run.folder=/mnt/shared/unplugged --set schedule.max_steps=24"
    )
    two = hosts.all[-1]
    with hosts.computer.start_command(line) as submitting:
        wait_until(lambda: len(runs.steps("unplugged")) > 3, RUN_TIMEOUT_S, "steps")
        hosts.switch.set_cable(two.cable, up=False)
        time.sleep(30.0)  # longer than Ray waits for a silent host
        hosts.switch.set_cable(two.cable, up=True)
        output, _ = submitting.communicate(timeout=2 * RUN_TIMEOUT_S)
    show(output)
    assert submitting.returncode == 0, output
    summary = runs.summary("unplugged")
    assert summary["restarts"] >= 1, output
    assert summary["steps"] == 24


def test_up_again_brings_all_back(hosts: Hosts) -> None:
    started_s = time.monotonic()
    run(hosts, command("ray up"), UP_TIMEOUT_S)
    wait_for_hosts(hosts, 3)
    tell(started_s, "up again")


def test_a_rebooted_host_comes_back_by_itself(hosts: Hosts) -> None:
    hosts.all[1].reboot()
    wait_until(lambda: hosts.all[1].processes("raylet"), UP_TIMEOUT_S, "a raylet on it")
    wait_for_hosts(hosts, 3)


def test_a_host_that_is_off_is_named_within_a_minute(hosts: Hosts) -> None:
    two = hosts.all[-1]
    two.stop()
    started_s = time.monotonic()
    run(hosts, command("ray up"), UP_TIMEOUT_S)
    up_s = time.monotonic()
    wait_until(lambda: names_as_missing(status(hosts), two.address), 60.0, "its name")
    tell(up_s, "named by `ray status`")
    wait_for_hosts(hosts, 2)
    line = f"{command('ray submit')} {SHORT} --set run.folder=/mnt/shared/waits"
    wait = "--set topology.wait_for_nodes_s=60"
    output = run(hosts, f"{line} {wait}", check=False)
    assert f"{two.address} can't be reached by ssh from the head" in output, output
    tell(started_s, "all of it")


def names_as_missing(text: str, address: str) -> bool:
    return re.search(rf"{re.escape(address)}: local\.cluster\.node", text) is not None


def test_down_leaves_nothing(hosts: Hosts) -> None:
    run(hosts, command("ray down"), UP_TIMEOUT_S)
    took_s = wait_until(
        lambda: not any(map(left, hosts.all[:2])), END_TIMEOUT_S, "the end of all of Ray"
    )
    print(f"nothing left after {took_s:.0f} s")


def left(host: Any) -> bool:
    """Whether processes of Ray's are on a host."""
    words = ("raylet", "gcs_server", "ray::", "site-packages/ray/")
    return any(host.processes(word) for word in words)
