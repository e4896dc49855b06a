"""The project on the hosts of `hosts.py`, as a user has it: a copy on the computer with a cluster
file filled in, an environment on every host, a small run, and the commands of the documentation."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.helpers import ROOT, wikigold_part
from tests.suites.hosts import ACCOUNT, HOME, SHARED, Hosts, give, lend_environment

PROJECT = "project"
"""The project's folder in the computer's home."""
CLUSTER_FILE = "cluster/onpremise.yaml"
_ENTER = f'cd ~/{PROJECT}; export PATH="$PWD/.venv/bin:$PATH" RAY_AUTH_MODE=token; '
_PARTS = ("tsarch", "cluster", "launch", "configs")
_FILES = ("pyproject.toml", "constraints.txt", "Makefile", "README.md", "LICENSE", ".gitignore")
_PLACES = ("192.0.2.10", "192.0.2.11", "192.0.2.12")


def equip(hosts: Hosts) -> None:
    """Put the project on the computer, its cluster file filled in, and environments everywhere."""
    project = hosts.computer.home / PROJECT
    for name in _PARTS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, project / name, symlinks=True, ignore=ignored)
    for name in _FILES:
        shutil.copy2(ROOT / name, project / name)
    file = project / CLUSTER_FILE
    text = file.read_text()
    for place, host in zip(_PLACES, hosts.all, strict=True):
        text = text.replace(place, host.address)
    assert f"ssh_user: {ACCOUNT} " in text
    file.write_text(text)
    _write_small(project / "configs")
    (hosts.all[-1].home / "ray_labels").write_text("tsarch-stage=student\n")
    lend_environment(hosts.computer, PROJECT)
    for host in hosts.all:
        lend_environment(host, "tsarch")
    give(project)


def _write_small(folder: Path) -> None:
    """`small.yaml`: the quickstart on a part of its data, two teacher ranks, each on a host of two
    CPUs of its own."""
    raw = yaml.safe_load((folder / "quickstart.yaml").read_text())
    (folder / "part").mkdir()
    wikigold_part(folder / "part", 120)
    raw["run"]["name"] = "small"
    # Ranks draw dropout's numbers each for itself; without it results are those of one process.
    for stage in ("teacher", "student"):
        raw[stage]["dropout"] = 0.0
    raw["data"] |= {split: f"part/{split}.jsonl" for split in ("train", "validation", "test")}
    raw["schedule"] |= {"epochs": 4}
    raw["evaluation"] |= {"before": False}
    raw["checkpoint"] = {"every_steps": 2}
    raw["failure"] = {"node_wait_s": 180.0, "hang_timeout_s": 60.0}
    raw["topology"] |= {"threads": 1, "cpus_per_rank": 2}
    raw["topology"] |= {
        "teacher": {"replicas": 2},
        "student": {"nodes": {"tsarch-stage": "student"}},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(raw))


def on_computer(command: str) -> str:
    """A command as it is typed in the project's folder on the computer."""
    return _ENTER + command


def documented(heading: str) -> list[str]:
    """The commands of docs/cluster.md below a heading, in order."""
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", text, re.M | re.S)
    blocks = re.findall(r"```console\n(.*?)```", section, re.S)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line[2:].strip() for line in joined.splitlines() if line.startswith("$ ")]


class Runs:
    """Folders of runs on the shared folder."""

    def __init__(self, hosts: Hosts) -> None:
        self._outside = hosts.folder / "shared"

    def inside(self, name: str) -> Path:
        """As hosts see it."""
        return SHARED / name

    def steps(self, name: str) -> list[dict[str, Any]]:
        """Rows of `metrics.jsonl`; none before there are any."""
        file = self._outside / name / "metrics.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def seats(self, name: str) -> list[dict[str, Any]]:
        """Which rank was where."""
        text = (self._outside / name / "logs" / "placement.json").read_text()
        found: list[dict[str, Any]] = json.loads(text)
        return found

    def summary(self, name: str) -> dict[str, Any]:
        """`summary.json`."""
        found: dict[str, Any] = json.loads((self._outside / name / "summary.json").read_text())
        return found


__all__ = ["HOME", "PROJECT", "Runs", "documented", "equip", "on_computer"]
