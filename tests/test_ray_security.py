"""Who may talk to a Ray: a run's own is closed and on loopback; clusters ask for their token."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from benchmarks.controller import null_crew
from tests.ranks import run_ranks
from tests.ray_clusters import TestCluster, ray_cluster
from tsarch.cluster import authentication, joining
from tsarch.cluster.authentication import Token, find_token, wants_token
from tsarch.cluster.joining import is_loopback, join_ray
from tsarch.errors import UserError
from tsarch.parallel.groups import MeetingPoint

AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
NUM_CPUS = 0.2


@pytest.fixture(autouse=True)
def no_token_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the person who runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    for name in AUTH:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("127.0.0.1:6379", True),
        ("127.8.0.1:6379", True),
        ("[::1]:6379", True),
        ("localhost:6379", True),
        ("192.0.2.7:6379", False),
        ("head.example:6379", False),
    ],
)
def test_loopback(target, expected):
    assert is_loopback(target) is expected


def test_tokens_are_found_where_ray_finds_them(tmp_path, monkeypatch):
    assert find_token() is None
    default = tmp_path / "home" / ".ray" / "auth_token"
    default.parent.mkdir()
    default.write_text("of the user\n")
    assert find_token() == Token("of the user", str(default))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert find_token() is None
    (tmp_path / "none").write_text("of a file")
    assert find_token() == Token("of a file", str(tmp_path / "none"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the environment")
    assert find_token() == Token("of the environment", "RAY_AUTH_TOKEN")


def test_a_token_is_not_shown():
    assert "secret" not in repr(Token("secret", "RAY_AUTH_TOKEN"))


@pytest.mark.parametrize("answers", [True, False])
def test_what_is_no_ray_is_told_at_once(monkeypatch, answers):
    """A server of something else, which closes the connection or says nothing."""
    monkeypatch.setattr(authentication, "_ANSWER_TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(joining, "find_head", lambda address: address)
        if answers:
            threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        monkeypatch.setattr(joining.ray, "init", unwanted)
        with pytest.raises(UserError, match="no Ray's head answers there"):
            join_ray(NUM_CPUS, f"127.0.0.1:{port}", print)


def unwanted(**options: Any) -> None:
    """In place of `ray.init`, which would try for minutes."""
    pytest.fail("Ray itself was asked to join")


@pytest.mark.parametrize(("asks", "host"), [(True, "192.0.2.7"), (False, "127.0.0.1")])
def test_no_warning_where_a_token_is_asked_for_or_nobody_else_comes(monkeypatch, asks, host):
    assert warnings(monkeypatch, asks, host) == []


def test_an_open_cluster_on_the_network_is_warned_of(monkeypatch):
    (warning,) = warnings(monkeypatch, False, "192.0.2.7")
    assert warning.startswith("warning: the Ray cluster at 192.0.2.7:6379 asks for no token")


def warnings(monkeypatch: pytest.MonkeyPatch, asks: bool, host: str) -> list[str]:
    """What is said on joining a cluster that isn't there."""
    said: list[str] = []
    monkeypatch.setattr(joining, "find_head", lambda address: address)
    monkeypatch.setattr(joining, "enter", lambda address, target: asks)
    monkeypatch.setattr(joining.ray, "init", lambda **options: None)
    join_ray(NUM_CPUS, f"{host}:6379", said.append)
    return said


def listening_of(process: psutil.Process) -> list[str]:
    """Addresses at which a process listens, one for each of its ports."""
    return [
        connection.laddr.ip.removeprefix("::ffff:")
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def listening_rank(rank: int, group: Any) -> tuple[int, list[str]]:
    group.allreduce(torch.ones(1)).wait()
    return os.getpid(), listening_of(psutil.Process())


@pytest.mark.ranks
@pytest.mark.slow
def test_ranks_and_their_meeting_point_listen_at_one_address():
    found = dict(run_ranks(listening_rank, 2))
    assert os.getpid() not in found
    assert all(set(own) == {"127.0.0.1"} for own in found.values())
    before = listening_of(psutil.Process())
    meeting_point = MeetingPoint("127.0.0.2")
    assert meeting_point.address.host == "127.0.0.2"
    assert Counter(listening_of(psutil.Process())) - Counter(before) == {"127.0.0.2": 1}


@pytest.mark.slow
@pytest.mark.ray
def test_a_runs_own_ray_is_on_loopback_and_its_token_is_written_nowhere(tmp_path, monkeypatch):
    token = secrets.token_hex(32)
    monkeypatch.setattr(authentication.secrets, "token_hex", lambda _: token)
    with null_crew(2, tmp_path / "run") as driver:
        driver.train(5)
        gcs = ray.get_runtime_context().gcs_address
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = [address for process in processes for address in listening_of(process)]
        commands = " ".join(" ".join(process.cmdline()) for process in processes)
        assert wants_token(gcs, None)
        assert wants_token(gcs, secrets.token_bytes(32).hex())
        assert not wants_token(gcs, token)
    assert len(listening) > 5
    assert set(listening) == {"127.0.0.1"}
    assert token not in commands
    places = [tmp_path / "run", session, Path.home() / ".ray"]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if token.encode() in path.read_bytes()]


@pytest.fixture(scope="module")
def closed() -> Iterator[TestCluster]:
    with ray_cluster([{"num_cpus": 1}]) as own:
        yield own


@pytest.mark.ray
@pytest.mark.slow
class TestAClusterThatAsksForAToken:
    def refused(self, cluster: TestCluster) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(joining.ray, "init", unwanted)
            with pytest.raises(UserError) as caught:
                join_ray(NUM_CPUS, cluster.address, print)
        assert not ray.is_initialized()
        (mistake,) = caught.value.mistakes
        assert mistake.where == f"--address {cluster.address}"
        assert "`ray get-auth-token` on the cluster's head prints it" in mistake.hint
        return mistake.what

    @pytest.mark.parametrize("mode", [None, "token", "disabled"])
    def test_without_one_the_way_to_it_is_told(self, closed, monkeypatch, mode):
        if mode is not None:
            monkeypatch.setenv("RAY_AUTH_MODE", mode)
        assert self.refused(closed) == "this Ray cluster asks for a token, and none is here."

    def test_a_wrong_one_is_named_by_its_place_alone(self, closed, monkeypatch, tmp_path):
        path = tmp_path / "wrong"
        path.write_text(secrets.token_hex(32))
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
        what = self.refused(closed)
        assert f"does not accept the token in {path}" in what
        assert path.read_text() not in what

    @pytest.mark.parametrize("place", ["default", "path", "environment"])
    def test_with_the_right_one_it_is_joined(self, closed, monkeypatch, tmp_path, place):
        token = closed.environment["RAY_AUTH_TOKEN"]
        if place == "environment":
            monkeypatch.setenv("RAY_AUTH_TOKEN", token)
        else:
            path = tmp_path / "home" / ".ray" / "auth_token"
            if place == "path":
                path = tmp_path / "elsewhere" / "token"
                monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
            path.parent.mkdir()
            path.write_text(token)
        said: list[str] = []
        join_ray(NUM_CPUS, closed.address, said.append)
        try:
            assert ray.get(ray.remote(num_cpus=0)(lambda: 1).remote()) == 1
        finally:
            ray.shutdown()
        assert said == []

    def test_own_rays_and_clusters_take_turns_in_a_process(self, closed, monkeypatch):
        join_ray(NUM_CPUS, None, print)
        ray.shutdown()
        assert self.refused(closed) == "this Ray cluster asks for a token, and none is here."
        monkeypatch.setenv("RAY_AUTH_TOKEN", closed.environment["RAY_AUTH_TOKEN"])
        join_ray(NUM_CPUS, closed.address, print)
        ray.shutdown()
        join_ray(NUM_CPUS, None, print)
        gcs = ray.get_runtime_context().gcs_address
        assert wants_token(gcs, closed.environment["RAY_AUTH_TOKEN"])
        ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_an_open_cluster_is_joined_without_one(monkeypatch):
    with ray_cluster([{"num_cpus": 1}], closed=False) as cluster:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")  # as on the hosts of cluster/*.yaml
        join_ray(NUM_CPUS, cluster.address, print)
        ray.shutdown()
        assert not wants_token(cluster.address, None)
