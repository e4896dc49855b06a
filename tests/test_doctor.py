"""`tsarch doctor`: planted faults are found, with what mends them; healthy hosts have none."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from tests.ray_clusters import ray_cluster
from tsarch.cluster.agreement import Clock
from tsarch.cluster.doctor_checks import notes, symptoms
from tsarch.cluster.doctor_facts import Findings, HostFacts, Rates, RayFacts

VERSIONS = {"Python": "3.11", "torch": "2.13.0", "ray": "2.60.0"}
HERE = HostFacts(
    "10.0.0.1",
    VERSIONS,
    cpus=8,
    memory_bytes=64 * 10**9,
    machine_memory_bytes=64 * 10**9,
    compilers={"g++": True, "ninja": True},
    free_bytes={"/runs": 10**12, "/tmp": 10**11},
    shm_bytes=2**31,
    open_files=65536,
    clock=Clock(-0.01, 0.02),
)
OTHER = replace(HERE, node="10.0.0.2")
THIRD = replace(HERE, node="10.0.0.3")
RAY = RayFacts("10.0.0.1:6379")
LINKS = {
    (a, b): 1e9
    for a in ("10.0.0.1", "10.0.0.2", "10.0.0.3")
    for b in ("10.0.0.1", "10.0.0.2", "10.0.0.3")
    if a != b
}
HEALTHY = Findings(HERE, (HERE, OTHER, THIRD), RAY, Rates(LINKS, 5e8, 2.0))


def on_one_host(**facts: object) -> Findings:
    return replace(HEALTHY, hosts=(HERE, replace(OTHER, **facts), THIRD))  # type: ignore[arg-type]


def on_the_cluster(**facts: object) -> Findings:
    return replace(HEALTHY, ray=replace(RAY, **facts))  # type: ignore[arg-type]


SLOW = {**LINKS, ("10.0.0.2", "10.0.0.3"): 1e7}
FAULTS = {
    "wrong version": (
        on_one_host(versions={**VERSIONS, "torch": "2.12.0+cpu"}),
        "torch: is 2.12.0 on 10.0.0.2, and 2.13.0 on 10.0.0.1",
        "make install",
    ),
    "full disk": (on_one_host(free_bytes={"/runs": 10**8}), "/runs has 0.1 GB free", "Delete old"),
    "clock ahead": (on_one_host(clock=Clock(9.9, 10.1)), "clock is +10.0 s off", "set-ntp true"),
    "clock behind": (on_one_host(clock=Clock(-10.1, -9.9)), "clock is -10.0 s off", "set-ntp true"),
    "folder of another user": (
        on_one_host(folders={"/runs": "can't be written"}, free_bytes={"/runs": 0}),
        "folder /runs: can't be written on 10.0.0.2",
        "Make it writable",
    ),
    "no shared folder": (
        on_one_host(folders={"/runs": "is not the driver's folder"}),
        "/runs: is not the driver's folder on 10.0.0.2",
        "Mount one folder",
    ),
    "port closed": (
        on_one_host(unreachable={"10.0.0.1 (port 4711)": "timed out"}),
        "can't connect to 10.0.0.1 (port 4711): timed out",
        "firewall",
    ),
    "small shared memory": (on_one_host(shm_bytes=64 * 2**20), "has 64 MB", "--shm-size"),
    "few files": (on_one_host(open_files=1024), "1024 files open", "ulimit -n"),
    "memory limit": (on_one_host(memory_bytes=10**9), "control group has 1.0 GB", "--memory"),
    "CPU limit": (on_one_host(cpus=0.5), "control group has 0.5 CPUs", "--cpus"),
    "GPU that torch can't use": (
        on_one_host(driver_gpus=2, gpus=("NVIDIA L4",)),
        "has 2 GPUs, torch can use 1",
        "CUDA build",
    ),
    "token missing": (on_the_cluster(has_token=False), "none is here", "ray get-auth-token"),
    "token wrong": (on_the_cluster(accepts_token=False), "doesn't accept", "ray get-auth-token"),
    "no token asked for": (on_the_cluster(asks_for_token=False), "no token", "RAY_AUTH_MODE=token"),
    "host silent": (on_the_cluster(silent=("10.0.0.4",)), "host 10.0.0.4", "ray status"),
    "no cluster": (on_the_cluster(refusal="nothing listens."), "nothing listens", "ray start"),
    "no group": (replace(HEALTHY, rates=None, network_error="timeout"), "timeout", "firewall"),
    "slow link": (
        replace(HEALTHY, rates=Rates(SLOW, 5e8, 2.0)),
        "10.0.0.2 → 10.0.0.3: 10 MB/s, where others have 1,000",
        "cable",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_alone_and_what_mends_it_is_told(fault):
    found, what, how = FAULTS[fault]
    (told,) = map(str, symptoms(found))
    assert what in told
    assert how in told


def test_healthy_hosts_have_no_symptoms():
    assert symptoms(HEALTHY) == []
    assert notes(HEALTHY) == []


def test_all_faults_are_told_at_once():
    bad = replace(OTHER, shm_bytes=1, open_files=16, clock=Clock(99.0, 99.1))
    assert len(symptoms(replace(HEALTHY, hosts=(HERE, bad, THIRD)))) == 3


def test_missing_compilers_are_a_remark_only():
    found = replace(HEALTHY, hosts=(replace(HERE, compilers={"g++": True, "ninja": False}),))
    assert symptoms(found) == []
    assert "ninja" in notes(found)[0]


def test_control_groups_limit_memory_and_cpus(tmp_path):
    from tsarch.cluster.doctor_host import _cpus, _memory_limit

    assert _memory_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert _memory_limit(tmp_path) == 1_000_000
    assert _cpus(tmp_path) == 0.5
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _memory_limit(tmp_path) is None
    assert _cpus(tmp_path) >= 1


def test_the_exit_status_and_the_json_tell_whether_all_is_well(capsys):
    from tsarch.launch.doctor import report

    assert report(HEALTHY, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["healthy"] is True
    assert report(FAULTS["full disk"][0], as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"] is False
    assert "free" in told["symptoms"][0]["what"]
    assert report(FAULTS["full disk"][0], as_json=False) == 1
    assert "wrong: host 10.0.0.2" in capsys.readouterr().out


@pytest.mark.slow
def test_this_host_is_examined(tmp_path):
    from tsarch.cluster.doctor import examine_here

    found = examine_here(str(tmp_path / "runs"))
    (own,) = found.hosts
    assert own.cpus >= 1
    assert own.memory_bytes > 10**9
    assert own.versions["torch"] != "missing"
    assert own.folders == {}
    assert str(tmp_path / "runs") in own.free_bytes
    assert not (tmp_path / "runs").exists(), "it only looks"


@pytest.mark.parametrize("below", ["/proc/nope", "{0}/file/runs", "{0}/file"])
def test_a_folder_that_can_not_be_written_is_told_as_that_alone(tmp_path, below):
    from tsarch.cluster.doctor_host import host_facts

    (tmp_path / "file").touch()
    folder = below.format(tmp_path)
    own = host_facts("10.0.0.1", folder, {})
    told = [str(mistake) for mistake in symptoms(Findings(own, (own,), None, None))]
    (mine,) = (text for text in told if folder in text)
    assert mine.startswith(f"folder {folder}: can't be written (")
    assert "on 10.0.0.1" in mine
    assert "run.folder" in mine


def test_below_a_file_no_folder_has_room(tmp_path):
    from tsarch.cluster.doctor_host import _free

    (tmp_path / "file").touch()
    assert _free(tmp_path / "file" / "runs") == _free(tmp_path / "file") == 0
    assert _free(tmp_path / "runs") > 0


def test_where_no_ray_listens_that_is_the_only_symptom_of_the_cluster():
    from tsarch.cluster.doctor import look_at_cluster

    began = time.monotonic()
    found = look_at_cluster("127.0.0.1:9")
    assert found.refusal
    assert time.monotonic() - began < 30
    (told,) = symptoms(replace(HEALTHY, ray=found))
    assert "ray start --head" in str(told)


@pytest.mark.ray
@pytest.mark.slow
def test_two_nodes_are_examined_and_their_link_is_measured(tmp_path, monkeypatch):
    from tsarch.cluster.doctor import examine_cluster, look_at_cluster

    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with ray_cluster([{"num_cpus": 1}, {"num_cpus": 1}]) as cluster:
        lacking = look_at_cluster(cluster.address)
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        found = examine_cluster(cluster.address, str(tmp_path / "runs"))
    assert lacking.asks_for_token
    assert not lacking.has_token
    assert [str(own) for own in symptoms(found) if "versions" in str(own)] == []
    assert found.ray is not None
    assert found.ray.silent == ()
    assert len(found.hosts) == 2
    assert found.network_error == ""
    assert found.rates is not None
    assert all(own.folders == {} and own.unreachable == {} for own in found.hosts)
    assert found.rates.collective > 0
