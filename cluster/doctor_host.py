"""Finds out what a host is; runs on every host of a cluster, and here."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

from tsarch.cluster.doctor_facts import HostFacts
from tsarch.cluster.probe import folder_problems, library_versions

_COMPILERS = ("g++", "ninja")
_GROUPS = Path("/sys/fs/cgroup")
_CARDS = Path("/sys/class/infiniband")


def host_facts(node: str, run_folder: str, marks: Mapping[str, str]) -> HostFacts:
    """What this host is.

    Args:
        node: its address.
        run_folder: for runs, relative to the current folder of whoever asks.
        marks: file in a shared folder → what must be in it.
    """
    memory = int(psutil.virtual_memory().total)
    return HostFacts(
        node=node,
        versions=library_versions(),
        cpus=_cpus(_GROUPS),
        memory_bytes=min(memory, _memory_limit(_GROUPS) or memory),
        machine_memory_bytes=memory,
        gpus=_gpus(),
        driver_gpus=len([p for p in Path("/dev").glob("nvidia*") if p.name[6:].isdigit()]),
        compilers={name: shutil.which(name) is not None for name in _COMPILERS},
        interconnect=tuple(sorted(os.listdir(_CARDS))) if _CARDS.is_dir() else (),
        free_bytes={name: _free(Path(name)) for name in (run_folder, tempfile.gettempdir())},
        shm_bytes=_size(Path("/dev/shm")),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        folders={**_unwritable(run_folder), **folder_problems(marks)},
    )


def _gpus() -> tuple[str, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _unwritable(folder: str) -> dict[str, str]:
    """What is wrong with a folder if nothing can be written where it is, or would be made."""
    try:
        with tempfile.TemporaryFile(dir=_nearest(Path(folder))):
            return {}
    except OSError as error:
        return {folder: f"can't be written ({error.strerror})"}


def _nearest(folder: Path) -> Path:
    """The folder, or of those above it the first that is there."""
    here = folder.absolute()
    while not os.path.exists(here):  # `Path.exists` raises where it may not look
        here = here.parent
    return here


def _free(folder: Path) -> int:
    """Bytes free where a folder is or would be; none where it can't be."""
    here = _nearest(folder)
    return shutil.disk_usage(here).free if here.is_dir() else 0


def _size(folder: Path) -> int:
    return shutil.disk_usage(folder).total if folder.is_dir() else 0


def _cpus(groups: Path) -> float:
    """CPUs that this process may use; of control groups' version 2 the quota too."""
    allowed = float(len(os.sched_getaffinity(0)))
    quota, _, period = _read(groups / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        return min(allowed, int(quota) / int(period))
    return allowed


def _memory_limit(groups: Path) -> int | None:
    """Of this process's control group (version 2, or 1); None: there is none."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(groups / name)
        if text.isdigit():
            return int(text)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
