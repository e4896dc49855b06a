"""Ranks are bound to the CPUs next to their GPU, where the host says which these are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tsarch.rank.numa import bind_to_gpu, cpu_numbers


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Two GPUs, on a NUMA node each."""
    for node, (address, cpus) in enumerate([("0000:1B:00.0", "0-1,4"), ("0000:af:00.0", "2-3")]):
        (tmp_path / "proc/driver/nvidia/gpus" / address).mkdir(parents=True)
        device = tmp_path / "sys/bus/pci/devices" / address.lower()
        device.mkdir(parents=True)
        (device / "numa_node").write_text(f"{node}\n")
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{cpus}\n")
    return tmp_path


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """What this process would have been bound to."""
    found: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: found.append(set(cpus)))
    return found


@pytest.mark.parametrize(("visible", "node", "cpus"), [("0", 0, {0, 1}), ("1", 1, {2, 3})])
def test_a_rank_runs_next_to_its_gpu(host, bound, monkeypatch, visible, node, cpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert bind_to_gpu(host) == node
    assert bound == [cpus]


@pytest.mark.parametrize("visible", ["", "0,1", "2", "GPU-4f2a", "-1"])
def test_a_rank_of_no_or_many_gpus_runs_anywhere(host, bound, monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert bind_to_gpu(host) is None
    assert bound == []


def test_a_host_of_one_node_says_minus_one(host, bound, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (host / "sys/bus/pci/devices/0000:1b:00.0/numa_node").write_text("-1\n")
    assert bind_to_gpu(host) is None
    assert bound == []


def test_cpus_that_may_not_be_used_are_no_choice(host, bound, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3})
    assert bind_to_gpu(host) is None
    assert bound == []


def test_how_the_kernel_writes_cpus():
    assert cpu_numbers("0-2,7,9-10\n") == {0, 1, 2, 7, 9, 10}
    assert cpu_numbers("\n") == set()
