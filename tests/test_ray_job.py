"""`ray job submit` of launch/train.py to a Ray cluster of its own, with authentication on."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from tests.helpers import ROOT, tiny_raw, wikigold_part
from tests.test_pair import run_of
from tsarch.launch.cli import main
from tsarch.launch.training import run_training

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RAY = str(Path(sys.executable).with_name("ray"))
START_TIMEOUT_S = 120.0
JOB_TIMEOUT_S = 420.0


@dataclass(frozen=True)
class Cluster:
    """A Ray head on this machine that only holders of its token may use."""

    dashboard: str
    environment: dict[str, str]

    def submit(self, *options: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
        """Exit status and output of `ray job submit`."""
        done = subprocess.run(
            [RAY, "job", "submit", "--address", self.dashboard, *options],
            env=self.environment if environment is None else environment,
            cwd=tempfile.gettempdir(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=JOB_TIMEOUT_S,
            check=False,
        )
        return done.returncode, done.stdout


def free_ports(number: int) -> list[str]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for own in sockets:
            own.bind(("127.0.0.1", 0))
        return [str(own.getsockname()[1]) for own in sockets]


def ray_environment(token_file: Path) -> dict[str, str]:
    """This process's environment, with nothing of another Ray's in it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**own, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}


def wait_for_port(port: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and head.poll() is None:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", int(port))) == 0:
                return
        time.sleep(0.5)
    pytest.fail(f"the dashboard did not start:\n{log.read_text()[-3000:]}")


def end(head: subprocess.Popen[bytes]) -> None:
    """End the head and what it started, each by its process id: other Rays go on."""
    started = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(timeout=5)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait()
    for process in psutil.wait_procs(started, timeout=3)[1]:
        process.kill()  # psutil checks that the id is still the same process's


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    token_file = folder / "token"
    token_file.write_text(secrets.token_hex(32))
    token_file.chmod(0o600)
    # Ray's Unix sockets lie in its folder, and their paths must be shorter than 107 bytes.
    temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    gcs, dashboard, listen, grpc, client = free_ports(5)
    # Jobs find `python` where this Python is, also where no environment is activated.
    paths = f"{Path(RAY).parent}{os.pathsep}{os.environ['PATH']}"
    environment = ray_environment(token_file) | {"PATH": paths}
    log = folder / "head.log"
    with log.open("wb") as output:
        head = subprocess.Popen(
            [
                *(RAY, "start", "--head", "--block", "--disable-usage-stats"),
                *("--num-cpus=2", "--num-gpus=0", f"--object-store-memory={256 * 2**20}"),
                *(f"--temp-dir={temporary}", f"--port={gcs}", "--node-ip-address=127.0.0.1"),
                *("--include-dashboard=true", "--dashboard-host=127.0.0.1"),
                # Ports that are the same for all Rays of a machine, unless one says otherwise.
                *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={listen}"),
                *(f"--dashboard-agent-grpc-port={grpc}", f"--ray-client-server-port={client}"),
            ],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
    try:
        wait_for_port(dashboard, head, log)
        yield Cluster(f"http://127.0.0.1:{dashboard}", environment)
    finally:
        end(head)
        shutil.rmtree(temporary, ignore_errors=True)


def test_a_stranger_is_turned_away(cluster: Cluster, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text(secrets.token_hex(32))
    marker = tmp_path / "marker"
    for mode in ("token", "disabled"):
        environment = ray_environment(wrong) | {"RAY_AUTH_MODE": mode}
        status, output = cluster.submit("--", "touch", str(marker), environment=environment)
        assert status != 0, output
        assert "Token authentication is enabled" in output
        assert not marker.exists()


@pytest.mark.thorough  # the next test trains as a job too, with smaller models
def test_the_quickstart_trains_as_a_job(cluster: Cluster, tmp_path: Path) -> None:
    run, part = tmp_path / "run", wikigold_part(tmp_path)["test"]
    status, output = cluster.submit(
        "--",
        sys.executable,
        str(ROOT / "launch" / "train.py"),
        "configs/quickstart.yaml",
        *("--set", "schedule.max_steps=4"),
        *("--set", "evaluation.before=false"),
        *("--set", f"data.validation={part}", "--set", f"data.test={part}"),
        *("--set", f"run.folder={run}"),
        *("--set", f"data.cache_folder={tmp_path / 'cache'}"),
    )
    assert status == 0, output
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["tied_max_abs_diff"] == 0.0


def test_a_job_takes_the_packages_of_its_working_folder(cluster: Cluster, tmp_path: Path) -> None:
    """`cluster` and `launch` are links in the package: what Ray packs has what they lead to."""
    project = tmp_path / "project"
    for name in ("tsarch", "cluster", "launch"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, project / name, symlinks=True, ignore=ignored)
    (project / "tiny.yaml").write_text(yaml.safe_dump(tiny_raw(tmp_path, schedule={"epochs": 1})))
    worker = project / "cluster" / "worker.py"
    mark = (
        f'\nwith open({str(tmp_path / "found")!r}, "a") as file:\n    print(__file__, file=file)\n'
    )
    worker.write_text(worker.read_text() + mark)
    script = (sys.executable, "launch/train.py", "tiny.yaml")
    status, output = cluster.submit("--working-dir", str(project), "--", *script)
    assert status == 0, output
    assert (tmp_path / "run" / "summary.json").exists()
    found = [Path(line) for line in (tmp_path / "found").read_text().splitlines()]
    assert len(found) >= 3, "the driver and both ranks"
    assert all(path.parts[-3:] == ("tsarch", "cluster", "worker.py") for path in found)
    assert all("working_dir_files" in path.parts for path in found), found


def tsarch(cluster: Cluster, *arguments: str, folder: Path) -> subprocess.Popen[str]:
    """A command of tsarch's about jobs, in a folder."""
    return subprocess.Popen(
        [str(Path(RAY).with_name("tsarch")), *arguments, "--address", cluster.dashboard],
        env={**cluster.environment, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(command: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and output."""
    output, _ = command.communicate(timeout=JOB_TIMEOUT_S)
    return command.returncode, output


@pytest.mark.thorough  # following, without a Ray: tests/test_submit.py
def test_a_submitted_run_is_followed_and_stopped_with_a_checkpoint(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(
        yaml.safe_dump(tiny_raw(tmp_path, schedule={"epochs": 999}))
    )
    following = tsarch(cluster, "submit", "tiny.yaml", folder=tmp_path)
    assert following.stdout is not None
    output = ""
    for line in following.stdout:
        output += line
        if "run folder: " in line:
            break
    (name,) = re.findall(r"job (tiny-\w+) is submitted", output)
    status, listed = finished(tsarch(cluster, "jobs", folder=tmp_path))
    assert status == 0
    assert name in listed
    status, stopped = finished(tsarch(cluster, "stop", name, folder=tmp_path))
    assert status == 0, stopped
    assert "SIGTERM: saving a checkpoint" in stopped
    assert f"job {name}: STOPPED" in stopped
    status, rest = finished(following)
    assert (status, f"job {name}: STOPPED" in rest) == (128 + signal.SIGTERM, True)
    status, attached = finished(tsarch(cluster, "attach", name, folder=tmp_path))
    assert "checking the config" in attached
    assert any((tmp_path / "run" / "checkpoints").iterdir())
    status, _ = finished(tsarch(cluster, "stop", "other", folder=tmp_path))
    assert status == 2


@pytest.mark.thorough  # the next kind of job, a training, is tried always
def test_files_are_predicted_as_a_job(cluster: Cluster, tmp_path: Path) -> None:
    run_training(run_of(tmp_path, "ner"))
    run, source = tmp_path / "run", tmp_path / "test.jsonl"
    predict = ("predict", str(run), "--input", str(source), "--mode", "student", "--output")
    script = (sys.executable, "-m", "tsarch", *predict, str(tmp_path / "job.jsonl"))
    status, output = cluster.submit("--", *script, "--ray", "--workers", "1")
    assert status == 0, output
    assert "inputs answered by student" in output
    with pytest.raises(SystemExit) as caught:
        main([*predict, str(tmp_path / "here.jsonl"), "--device", "cpu"])
    assert caught.value.code == 0
    found, expected = (tmp_path / f"{name}.jsonl" for name in ("job", "here"))
    assert found.read_bytes() == expected.read_bytes()


def test_a_mistake_of_the_user_fails_the_job(cluster: Cluster) -> None:
    status, output = cluster.submit(
        "--", sys.executable, str(ROOT / "launch" / "train.py"), "configs/no_such.yaml"
    )
    assert status == 1, output
    assert "no_such.yaml" in output
    assert "exit code 2" in output
    assert "Traceback" not in output
