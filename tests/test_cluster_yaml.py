"""cluster/*.yaml: valid for Ray, closed to strangers, and with everything an install needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "cluster").glob("*.yaml"))
TOKEN_FILE = "~/.ray/auth_token"


def load(path: Path) -> dict[str, Any]:
    config = yaml.safe_load(path.read_text())
    assert isinstance(config, dict)
    return config


def start_commands(config: dict[str, Any]) -> list[str]:
    both = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    return [command for command in both if "ray start" in command]


def test_there_are_files() -> None:
    assert [path.name for path in FILES] == ["onpremise.yaml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
class TestClusterFile:
    def test_ray_accepts_it(self, path: Path) -> None:
        from ray.autoscaler._private.util import prepare_config, validate_config

        config = load(path)
        prepared = prepare_config(config)
        validate_config(prepared)
        num_workers = len(config["provider"]["worker_ips"])
        assert prepared["max_workers"] == num_workers
        assert prepared["available_node_types"]["local.cluster.node"]["min_workers"] == num_workers

    def test_authentication_is_on(self, path: Path) -> None:
        config = load(path)
        commands = start_commands(config)
        assert len(commands) == 2
        assert all("RAY_AUTH_MODE=token " in command for command in commands)
        assert config["file_mounts"][TOKEN_FILE] == TOKEN_FILE
        assert f"chmod 600 {TOKEN_FILE}" in config["setup_commands"]

    def test_the_dashboard_is_not_on_the_network(self, path: Path) -> None:
        (head,) = [c for c in start_commands(load(path)) if "--head" in c]
        assert "--dashboard-host=127.0.0.1" in head

    def test_the_head_is_where_the_other_hosts_look_for_it(self, path: Path) -> None:
        config = load(path)
        (head,) = [c for c in start_commands(config) if "--head" in c]
        assert f"--node-ip-address={config['provider']['head_ip']} " in head
        assert "--port=6379 " in head
        assert "--address=$RAY_HEAD_IP:6379 " in start_commands(config)[1]

    def test_the_autoscaler_is_one_that_knows_the_provider(self, path: Path) -> None:
        config = load(path)
        (head,) = [c for c in start_commands(config) if "--head" in c]
        assert config["provider"]["type"] == "local"
        assert "RAY_enable_autoscaler_v2=0 " in head

    def test_it_copies_what_an_install_needs(self, path: Path) -> None:
        mounts = load(path)["file_mounts"]
        own = {remote: local for remote, local in mounts.items() if remote != TOKEN_FILE}
        assert all(remote == f"~/tsarch/{local}" for remote, local in own.items())
        assert all((ROOT / local).exists() for local in own.values())
        needed = {"tsarch", "cluster", "launch", "pyproject.toml", "constraints.txt", "Makefile"}
        assert needed <= set(own.values())
        assert not {".", ".venv", ".git", "runs"} & set(own.values())
