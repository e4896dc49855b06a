"""Files for `ray up` in cluster/: valid for Ray, closed to strangers, with all an install needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "cluster" / f"{name}.yaml" for name in ("onpremise", "aws", "gcp")]
CLOUDS = FILES[1:]
TOKEN_FILE = "~/.ray/auth_token"


def load(path: Path) -> dict[str, Any]:
    config = yaml.safe_load(path.read_text())
    assert isinstance(config, dict)
    return config


def prepared(path: Path) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config

    own: dict[str, Any] = prepare_config(load(path))
    return own


def start_commands(config: dict[str, Any]) -> list[str]:
    both = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    return [command for command in both if "ray start" in command]


def test_all_files_are_tested():
    manifests = {"kuberay-cluster.yaml", "kuberay-job.yaml"}
    assert {path.name for path in (ROOT / "cluster").glob("*.yaml")} - manifests == {
        path.name for path in FILES
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
class TestClusterFile:
    def test_ray_accepts_it(self, path: Path) -> None:
        from ray.autoscaler._private.util import validate_config

        validate_config(prepared(path))

    def test_authentication_is_on(self, path: Path) -> None:
        config = load(path)
        commands = start_commands(config)
        assert len(commands) == 2
        assert all("RAY_AUTH_MODE=token " in command for command in commands)
        assert config["file_mounts"][TOKEN_FILE] == TOKEN_FILE
        assert f"chmod 600 {TOKEN_FILE}" in config["setup_commands"]

    def test_ranks_are_no_nicer_than_other_processes(self, path: Path) -> None:
        assert all("RAY_worker_niceness=0 " in own for own in start_commands(load(path)))

    def test_the_dashboard_is_not_on_the_network(self, path: Path) -> None:
        (head,) = [c for c in start_commands(load(path)) if "--head" in c]
        assert "--dashboard-host=127.0.0.1" in head

    def test_the_head_is_where_the_other_hosts_look_for_it(self, path: Path) -> None:
        head, other = start_commands(load(path))
        assert "--port=6379 " in head
        assert "--address=$RAY_HEAD_IP:6379 " in other

    def test_it_copies_what_an_install_needs(self, path: Path) -> None:
        mounts = load(path)["file_mounts"]
        own = {remote: local for remote, local in mounts.items() if remote != TOKEN_FILE}
        assert all(remote == f"~/tsarch/{local}" for remote, local in own.items())
        assert all((ROOT / local).exists() for local in own.values())
        needed = {"tsarch", "cluster", "launch", "pyproject.toml", "constraints.txt", "Makefile"}
        assert needed <= set(own.values())
        assert not {".", ".venv", ".git", "runs"} & set(own.values())
        assert "make -C ~/tsarch install" in load(path)["setup_commands"]

    def test_what_its_first_lines_say_to_type_is_there(self, path: Path) -> None:
        named = re.findall(r"cluster/[\w.-]+", path.read_text())
        assert f"cluster/{path.name}" in named
        assert all((ROOT / name).exists() for name in named)


class TestOwnHosts:
    def test_all_are_kept(self) -> None:
        config, own = load(FILES[0]), prepared(FILES[0])
        num_workers = len(config["provider"]["worker_ips"])
        assert own["max_workers"] == num_workers
        assert own["available_node_types"]["local.cluster.node"]["min_workers"] == num_workers

    def test_the_autoscaler_is_one_that_knows_the_provider(self) -> None:
        config = load(FILES[0])
        head, _ = start_commands(config)
        assert config["provider"]["type"] == "local"
        assert "RAY_enable_autoscaler_v2=0 " in head
        assert f"--node-ip-address={config['provider']['head_ip']} " in head

    def test_hosts_say_themselves_which_stage_they_are_for(self) -> None:
        assert all('--labels="$(cat ~/ray_labels' in own for own in start_commands(load(FILES[0])))


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)
class TestCloud:
    def test_each_stage_has_hosts_of_its_own_which_are_kept(self, path: Path) -> None:
        config = load(path)
        types = config["available_node_types"]
        assert config["head_node_type"] == "head"
        workers = {name: own for name, own in types.items() if name != "head"}
        assert {n: own["labels"] for n, own in workers.items()} == {
            stage: {"tsarch-stage": stage} for stage in ("teacher", "student")
        }
        assert all(own["min_workers"] == own["max_workers"] for own in workers.values())
        assert config["max_workers"] == sum(own["max_workers"] for own in workers.values())
        assert types["head"]["resources"]["GPU"] == 0


@pytest.fixture
def amazon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An EC2 on this machine, with a network and an image."""
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    with mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        yield boto3.client("ec2", "us-west-2")


@pytest.mark.thorough  # it waits for the roles that it makes
def test_rays_own_code_for_aws_starts_the_hosts(amazon: Any) -> None:
    """Up to the instances: keys, roles, groups and subnets, as `ray up` makes them."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    own = prepared(FILES[1])
    for kind in own["available_node_types"].values():
        kind["node_config"]["ImageId"] = amazon.describe_images()["Images"][0]["ImageId"]
    own = AWSNodeProvider.fillout_available_node_types_resources(bootstrap_aws(own))
    types = own["available_node_types"]
    assert types["teacher"]["resources"]["GPU"] == 8
    assert types["student"]["resources"]["GPU"] == 4
    provider = AWSNodeProvider(own["provider"], own["cluster_name"])
    for name, kind in types.items():
        tags = {"ray-node-type": "worker", "ray-node-status": "x", "ray-node-name": name}
        provider.create_node(kind["node_config"], tags, max(1, kind["min_workers"]))
    instances = [i for r in amazon.describe_instances()["Reservations"] for i in r["Instances"]]
    # (The simulated EC2 starts one where Ray asks for one to two.)
    assert {i["InstanceType"] for i in instances} == {"m7i.2xlarge", "p5.48xlarge", "g6e.12xlarge"}
    assert {i["Placement"]["AvailabilityZone"] for i in instances} == {"us-west-2a"}
