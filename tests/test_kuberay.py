"""cluster/kuberay-*.yaml: fields that KubeRay knows, closed to strangers, a group a stage."""

from __future__ import annotations

import copy
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.helpers import ROOT
from tests.kuberay_schema import SCHEMAS
from tsarch.config_loading import load_config

FILES = {"RayCluster": "kuberay-cluster.yaml", "RayJob": "kuberay-job.yaml"}


def load(kind: str) -> dict[str, Any]:
    own = yaml.safe_load((ROOT / "cluster" / FILES[kind]).read_text())
    assert own["kind"] == kind
    return dict(own)


def cluster_spec(kind: str) -> dict[str, Any]:
    spec = load(kind)["spec"]
    return dict(spec["rayClusterSpec"] if kind == "RayJob" else spec)


def containers(kind: str) -> list[dict[str, Any]]:
    spec = cluster_spec(kind)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [own for group in groups for own in group["template"]["spec"]["containers"]]


@pytest.mark.parametrize("kind", FILES)
class TestManifest:
    def test_it_has_the_fields_of_the_reference(self, kind: str) -> None:
        jsonschema.validate(load(kind), SCHEMAS[kind])

    def test_a_field_that_is_misspelt_would_be_found(self, kind: str) -> None:
        wrong = copy.deepcopy(load(kind))
        wrong["spec"]["authOption"] = {}
        with pytest.raises(jsonschema.ValidationError, match="authOption"):
            jsonschema.validate(wrong, SCHEMAS[kind])

    def test_authentication_is_on_and_ranks_are_not_nice(self, kind: str) -> None:
        assert cluster_spec(kind)["authOptions"] == {"mode": "token"}
        nice = {"name": "RAY_worker_niceness", "value": "0"}
        assert all(nice in own["env"] for own in containers(kind))

    def test_the_version_is_the_one_that_is_installed(self, kind: str) -> None:
        (pinned,) = re.findall(
            r"^ray(?:\[.*\])?==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M
        )
        assert cluster_spec(kind)["rayVersion"] == pinned

    def test_each_stage_has_a_group_that_is_kept(self, kind: str) -> None:
        groups = {own["groupName"]: own for own in cluster_spec(kind)["workerGroupSpecs"]}
        assert set(groups) == {"teacher", "student"}
        for name, own in groups.items():
            assert own["rayStartParams"]["labels"] == f"tsarch-stage={name}"
            assert own["replicas"] == own["minReplicas"] == own["maxReplicas"]

    def test_every_container_has_the_shared_folder_and_the_image(self, kind: str) -> None:
        for own in containers(kind):
            assert own["image"] == "REGISTRY/tsarch:cuda"
            mounts = {mount["name"]: mount["mountPath"] for mount in own["volumeMounts"]}
            assert mounts == {"shared": "/shared", "shm": "/dev/shm"}
            assert own["resources"]["limits"] == own["resources"]["requests"]

    def test_rays_autoscaler_reads_its_groups(self, kind: str) -> None:
        from ray.autoscaler._private.kuberay.autoscaling_config import (
            _derive_autoscaling_config_from_ray_cr,
        )

        resource = {"metadata": {"name": "tsarch", "namespace": "x"}, "spec": cluster_spec(kind)}
        types = _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
        assert types["teacher"]["resources"]["GPU"] == 8
        assert types["student"]["resources"]["GPU"] == 4
        assert types["teacher"]["max_workers"] == 2


def test_the_jobs_command_is_a_run_of_a_config_that_is_there() -> None:
    spec = load("RayJob")["spec"]
    shell, flag, line = shlex.split(spec["entrypoint"])
    assert (shell, flag) == ("sh", "-c")
    words = shlex.split(line.partition("exec ")[2])
    assert words[:2] == ["python", "launch/train.py"]
    settings = [after for before, after in pairwise(words) if before == "--set"]
    config = load_config(Path(ROOT / words[2]), settings)
    assert config.topology.teacher.nodes == {"tsarch-stage": "teacher"}
    assert config.run_folder.startswith("/shared/")
    assert f"test -d {config.run_folder}/checkpoints" in line
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60
