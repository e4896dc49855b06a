"""`tsarch submit` before anything is sent, and how a job's log is followed."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.job_submission import JobStatus

from tests.helpers import QUICKSTART_MODEL
from tsarch.cluster import jobs as jobs_module
from tsarch.cluster import tunnel as tunnel_module
from tsarch.cluster import working_folder
from tsarch.cluster.authentication import private_ray
from tsarch.cluster.coming_nodes import ComingNode, of_report, waiting_line
from tsarch.cluster.jobs import Jobs
from tsarch.cluster.working_folder import WorkingFolder
from tsarch.errors import UserError
from tsarch.launch.submit import Submission, Target, submit_run

NOWHERE = Target(None, "http://127.0.0.1:1")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a config and data, with things beside that nobody wants to send."""
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("{}\n")
    raw = {
        "run": {"folder": "/shared/runs/mine", "name": "mine"},
        "data": {split: f"data/{split}.jsonl" for split in ("train", "validation", "test")},
        "teacher": {"model": QUICKSTART_MODEL},
        "student": {"layers": [0]},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / ".gitignore").write_text("runs/\n")
    for name in ("runs/old", ".venv/lib", ".git/objects"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "large").write_bytes(b"0" * 1000)
    return tmp_path


def submission(project: Path, *overrides: str, folder: Path | None = None) -> Submission:
    return Submission(project / "mine.yaml", overrides, folder or project, False, 600, True)


def refused(what: Submission) -> str:
    with pytest.raises(UserError) as caught:
        submit_run(what, NOWHERE)
    return str(caught.value)


def test_what_is_fine_goes_on_to_the_server(project, capsys):
    assert "no Ray's job server answers there" in refused(submission(project))
    assert f"5 files of {project} are sent" in capsys.readouterr().err


def test_a_ray_that_this_process_had_leaves_no_wish_for_a_token(project):
    with private_ray():
        pass
    assert "no Ray's job server answers there" in refused(submission(project))


def test_a_cluster_that_was_joined_before_leaves_no_wish_for_a_token(project, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # as joining one with a token leaves it
    assert "no Ray's job server answers there" in refused(submission(project))


def test_a_run_folder_that_would_be_lost_is_refused(project):
    text = refused(submission(project, "run.folder=here"))
    assert "run.folder: here: is relative" in text
    assert "--set run.folder=/shared/runs/mine" in text


@pytest.mark.parametrize(
    ("file", "place", "pattern"),
    [
        (".gitignore", "", "*.jsonl"),
        (".rayignore", "data", "train.jsonl"),
        (".gitignore", "", "data/"),
    ],
)
def test_data_that_is_hidden_is_named_and_what_hides_it(project, file, place, pattern):
    (project / place / file).write_text(f"{pattern}\n")
    text = refused(submission(project))
    where = f"{place}/{file}".lstrip("/")
    assert (
        f"data.train: {project}/data/train.jsonl: is not sent with the job: it is hidden by" in text
    )
    assert f"hidden by {where}." in text


def test_a_run_that_teaches_must_come_along(project, monkeypatch):
    monkeypatch.chdir(project)
    taught = ("distillation.weight=0.5", "distillation.from_run=[runs/old, runs/none]")
    text = refused(submission(project, *taught))
    assert f"distillation.from_run: {project}/runs/old: is not sent with the job" in text
    assert f"distillation.from_run: {project}/runs/none: is not there" in text


def test_text_behind_a_url_need_not_be_in_the_folder(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    beside = ("distillation.weight=0.5", "data.unlabelled=[s3://bucket/own.txt, data/test.jsonl]")
    assert "no Ray's job server answers there" in refused(submission(project, *beside))
    assert "unlabelled" not in capsys.readouterr().err


def test_a_folder_that_ray_never_sends_is_told(project):
    (project / "venv").mkdir()
    (project / "venv" / "train.jsonl").write_text("{}")
    text = refused(submission(project, "data.train=venv/train.jsonl"))
    assert "hidden by Ray, which never sends .git, .venv, venv, __pycache__." in text


def test_all_is_told_at_once(project):
    (project / "data" / "test.jsonl").unlink()
    (project / ".rayignore").write_text("validation.jsonl\nmine.yaml\n")
    text = refused(submission(project, "run.folder=here"))
    assert "data.test" in text
    assert "data.validation" in text
    assert "mine.yaml: is not sent" in text
    assert "run.folder" in text


def test_a_config_elsewhere_is_refused(project, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    assert f"is not in the working folder {other}" in refused(submission(project, folder=other))


def test_data_that_only_the_hosts_have_is_noted(project, capsys):
    refused(submission(project, "data.train=/shared/data/train.jsonl"))
    assert "/shared/data/train.jsonl is not in the working folder: the hosts" in (
        capsys.readouterr().err
    )


def test_what_is_large_is_named(project, monkeypatch):
    (project / "data" / "movie").write_bytes(bytes(range(256)) * 4000)
    (project / "data" / "noise").write_bytes(os.urandom(3 * 2**20))
    monkeypatch.setattr(working_folder.packaging, "GCS_STORAGE_MAX_SIZE", 4 * 2**20)
    assert WorkingFolder.look(project).too_large() is None, "it is smaller when packed"
    monkeypatch.setattr(working_folder.packaging, "GCS_STORAGE_MAX_SIZE", 2 * 2**20)
    text = refused(submission(project))
    assert "MiB when packed, and Ray takes less than 2.0 MiB" in text
    assert "The largest: data/noise (3.0 MiB), data/movie (1.0 MiB)," in text


def test_the_address_is_one_of_a_job_server(project):
    with pytest.raises(UserError, match="is no address of a job server"):
        submit_run(submission(project), Target(None, "10.0.0.1:6379"))


class Server:
    """In place of Ray's client: a log of which a part comes, then the connection is lost."""

    def __init__(self, log: list[str], loses_after: int) -> None:
        self.log, self._left = log, loses_after
        self.connections = 0

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        self.connections += 1
        for number, text in enumerate(self.log):
            if self.connections == 1 and number == self._left:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield text

    def get_job_status(self, name: str) -> JobStatus:
        return JobStatus.SUCCEEDED

    def get_job_logs(self, name: str) -> str:
        return "".join([*self.log, "the end\n"])

    def get_job_info(self, name: str) -> Any:
        class Info:
            status, driver_exit_code, message = JobStatus.FAILED, 2, "exit code 2, as it says"

        return Info


@pytest.mark.parametrize("loses_after", [0, 1, 2, 3])
def test_a_log_goes_on_where_it_was(monkeypatch, loses_after):
    monkeypatch.setattr(jobs_module, "_RETRY_S", 0.0)
    jobs: Any = object.__new__(Jobs)
    jobs._client = server = Server(["one\ntwo\n", "three\n", "four\n"], loses_after)
    written, said = [], []
    end = jobs.follow("job", written.append, said.append)
    assert "".join(written) == "one\ntwo\nthree\nfour\nthe end\n"
    assert (end.status, end.exit_status) == ("FAILED", 2)
    assert server.connections == (1 if loses_after == 3 else 2)
    words = ["connection lost", "connected again"] if loses_after < 3 else []
    assert [line[: len(word)] for line, word in zip(said, words, strict=True)] == words


def test_the_command_of_the_job(project):
    from tsarch.launch.submit import _command

    (project / "launch").mkdir()
    what = submission(project, "run.name=a b")
    bare = _command(what, WorkingFolder.look(project))
    assert shlex.split(bare)[:4] == ["python", "-m", "tsarch.launch.train", "mine.yaml"]
    (project / "launch" / "train.py").touch()
    own = shlex.split(_command(what, WorkingFolder.look(project)))
    assert own == ["python", "launch/train.py", "mine.yaml", "--set", "run.name=a b"]


def test_nodes_that_come_are_told_and_those_that_cant():
    report = {
        "pending_nodes": [
            ["10.0.0.2", "local.cluster.node", "waiting-for-ssh"],
            ["10.0.0.3", "local.cluster.node", "setting-up"],
        ],
        "pending_launches": {"teacher": 2},
        "failed_nodes": [["10.0.0.4", "local.cluster.node"], ["10.0.0.2", "local.cluster.node"]],
    }
    nodes = of_report(report)
    early, late = waiting_line(nodes, 1.0), waiting_line(nodes, 50.0)
    assert early is not None
    assert (
        "10.0.0.2 (waiting-for-ssh), 10.0.0.3 (setting-up), 2 × teacher (being launched)" in early
    )
    assert "10.0.0.4 failed to start" in early
    assert "can't be reached" not in early
    assert late is not None
    assert "10.0.0.2 can't be reached by ssh from the head" in late
    assert waiting_line([], 0.0) is None
    assert waiting_line([ComingNode("a", "failed", True)], 0.0) is None


def way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> Path:
    """A cluster file, and a `ray` that does this (its port is the fourth argument)."""
    script = tmp_path / "ray"
    script.write_text(f"#!{sys.executable}\nimport socket, sys, time\n{line}\n")
    script.chmod(0o755)
    monkeypatch.setattr(tunnel_module, "_RAY", script)
    monkeypatch.setattr(tunnel_module, "_ANEW_S", 0.02)
    (tmp_path / "cluster.yaml").touch()
    return tmp_path / "cluster.yaml"


def test_a_way_that_breaks_is_made_anew(tmp_path, monkeypatch):
    once = "own = socket.create_server(('127.0.0.1', int(sys.argv[4]))); own.accept()[0].recv(1)"
    with tunnel_module.tunnel(way(tmp_path, monkeypatch, once)) as address:
        port = int(address.rpartition(":")[2])
        for _ in range(2):  # the first look has used one up already
            with closing(connection(port)):
                pass


def connection(port: int) -> socket.socket:
    while True:
        with suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), timeout=5)
        time.sleep(0.01)


def test_a_way_that_there_is_not_is_told_with_rays_words(tmp_path, monkeypatch):
    cluster = way(tmp_path, monkeypatch, "sys.exit('Head node of cluster (x) not found!')")
    with pytest.raises(UserError) as caught, tunnel_module.tunnel(cluster):
        pass
    assert "no way to the dashboard of its head: Head node of cluster (x) not found!" in str(
        caught.value
    )


def test_a_cluster_file_that_there_is_not(project):
    with pytest.raises(UserError, match=r"--cluster none\.yaml: there is no such file"):
        submit_run(submission(project), Target(Path("none.yaml"), None))


def test_a_job_that_is_gone_ends_the_following(monkeypatch):
    jobs: Any = object.__new__(Jobs)
    jobs._client = Server([], 0)
    jobs._client.get_job_info = gone
    jobs._client.connections = 1
    with pytest.raises(UserError, match="job x: the cluster doesn't know it any more"):
        jobs.follow("x", print, print)


def gone(name: str) -> None:
    raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist.")
