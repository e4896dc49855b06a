"""A run is the same in every shell: launchers' variables and another Ray's are left aside."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from accelerate.state import AcceleratorState, GradientState

from tests.helpers import ROOT, tiny_blueprint
from tsarch.cluster import own_ray
from tsarch.cluster.own_ray import fits_sockets, is_own, own_environment, short_folder
from tsarch.errors import UserError
from tsarch.launch.cli import main
from tsarch.launch.training import cluster_address
from tsarch.launchers import (
    describe,
    forget_launchers,
    launcher_of,
    launcher_variables,
    without_launchers,
)
from tsarch.rank import wiring

HOSTILE = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "192.0.2.1",
    "MASTER_PORT": "23456",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "PMI_SIZE": "8",
    "MV2_COMM_WORLD_RANK": "5",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "FSDP_VERSION": "2",
    "DS_ACCELERATOR": "cuda",
    "SLURM_PROCID": "1",
}
HARMLESS = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "0",
    "NCCL_DEBUG": "INFO",
    "GLOO_SOCKET_IFNAME": "lo",
    "TORCH_HOME": "/models",
    "TMPDIR": "/tmp",
    "HF_HOME": "/models",
    "DS_SKIP_CUDA_CHECK": "1",
    "DS_BUILD_OPS": "0",
    "RANKING": "1",
}


@pytest.fixture
def hostile(monkeypatch):
    """An environment as launchers leave it."""
    for name, value in {**HOSTILE, **HARMLESS}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variable", "launcher"),
    [
        ("RANK", "torchrun"),
        ("LOCAL_WORLD_SIZE", "torchrun"),
        ("TORCHELASTIC_USE_AGENT_STORE", "torchrun"),
        ("PET_NNODES", "torchrun"),
        ("OMPI_COMM_WORLD_SIZE", "MPI"),
        ("PMIX_RANK", "MPI"),
        ("MPI_LOCALRANKID", "MPI"),
        ("MV2_COMM_WORLD_LOCAL_RANK", "MPI"),
        ("ACCELERATE_ANYTHING_NEW", "accelerate"),
        ("FSDP_OFFLOAD_PARAMS", "accelerate"),
        ("PARALLELISM_CONFIG_TP_SIZE", "accelerate"),
        ("DEEPSPEED_TIMEOUT", "DeepSpeed"),
        ("SLURM_LOCALID", "SLURM"),
        ("SMDATAPARALLEL_LOCAL_RANK", "SageMaker"),
        ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "the container"),
        ("SLURMY", None),
        *((name, None) for name in HARMLESS),
    ],
)
def test_whose_a_variable_is(variable, launcher):
    assert launcher_of(variable) == launcher


def test_launchers_variables_are_forgotten_for_good_or_for_a_while(hostile):
    with without_launchers():
        assert not launcher_variables(os.environ)
        assert HARMLESS.items() <= os.environ.items()
    assert HOSTILE.items() <= os.environ.items()
    assert forget_launchers().keys() >= HOSTILE.keys()
    assert not launcher_variables(os.environ)
    assert HARMLESS.items() <= os.environ.items()


def test_a_run_in_one_process_is_one_process_in_every_shell(tmp_path, hostile, monkeypatch):
    seen = []

    class Watched(wiring.Accelerator):
        def __init__(self, **options):
            seen.append(launcher_variables(os.environ))
            assert not seen[-1], "accelerate would wait for ranks that nobody starts"
            super().__init__(**options)

    monkeypatch.setattr(wiring, "Accelerator", Watched)
    blueprint = tiny_blueprint(tmp_path, topology={"runner": "local", "device": "cpu"})
    here = wiring.local_wiring(blueprint)
    assert seen == [{}]
    assert str(here.device) == "cpu"
    state = AcceleratorState()
    assert (state.num_processes, state.mixed_precision) == (1, "no")
    assert GradientState().num_steps == 1


def test_a_rank_hears_nothing_of_a_launcher_that_started_its_node(tmp_path):
    script = (
        "import json, os, sys; from pathlib import Path; from tests.helpers import tiny_blueprint;"
        "from tsarch.rank.process import RankProcess; folder = Path(sys.argv[1]);"
        "RankProcess(tiny_blueprint(folder), 0, 1, folder / 'log', '127.0.0.1');"
        "(folder / 'seen').write_text(json.dumps(dict(os.environ)))"
    )
    environment = {**os.environ, **HARMLESS, **HOSTILE}
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, env=environment, check=True
    )
    seen = json.loads((tmp_path / "seen").read_text())
    assert not launcher_variables(seen)
    assert HARMLESS.items() <= seen.items()


def test_a_command_tells_of_variables_that_were_to_start_ranks(hostile, capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["schema", str(tmp_path / "schema.json")])
    said = capsys.readouterr().err
    assert said.startswith("note: variables of torchrun and MPI and accelerate and DeepSpeed in ")
    assert "torchrun -m tsarch.launch.torchrun CONFIG" in said
    assert not launcher_variables(os.environ)
    assert describe({"SLURM_JOB_ID": "SLURM"}) is None


@pytest.mark.parametrize(
    ("variable", "own"),
    [
        ("RAY_ADDRESS", False),
        ("RAY_RUNTIME_ENV_HOOK", False),
        ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", False),
        ("RAY_JOB_CONFIG_JSON_ENV_VAR", False),
        ("RAY_OVERRIDE_RESOURCES", False),
        ("RAY_REDIS_ADDRESS", False),
        ("RAY_TMPDIR", False),
        ("RAY_NAMESPACE", False),
        ("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", False),
        ("RAY_SOMETHING_NEW", False),
        ("RAY_USAGE_STATS_ENABLED", True),
        ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", True),
        ("RAY_memory_usage_threshold", True),
        ("TMPDIR", True),
    ],
)
def test_what_an_own_ray_sees_of_the_environment(variable, own, monkeypatch):
    assert is_own(variable) is own
    monkeypatch.setenv(variable, "before")
    with own_environment():
        assert (variable in os.environ) is own
        assert not own_ray.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    assert os.environ[variable] == "before"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, True),
        ({"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "1"}, True),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}, False),
    ],
)
def test_ranks_on_a_cluster_are_started_with_uv_run_in_a_ray_job_or_if_asked(environment, wanted):
    assert own_ray.wants_uv_hook(environment) is wanted


def test_an_own_rays_folder_is_short_and_for_this_user_alone(tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    assert not fits_sockets(str(long))
    assert fits_sockets("/" + "x" * 29)
    assert not fits_sockets("/" + "x" * 30)
    folder = short_folder([str(long), "/nowhere", "/tmp"])
    assert folder.parent.as_posix() == "/tmp"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    with pytest.raises(UserError, match=r"TMPDIR: .*x: no folder for Ray's sockets can be made"):
        short_folder([str(long), "/nowhere"])


def test_whatever_ray_raises_as_it_starts_is_one_message(monkeypatch):
    def fail(**_):
        raise AssertionError("the object store has no place")

    monkeypatch.setattr(own_ray.ray, "init", fail)
    with pytest.raises(UserError) as caught:
        own_ray.start_ray(1.0)
    (mistake,) = caught.value.mistakes
    assert mistake.what == "no Ray starts on this machine: the object store has no place."
    assert "topology.runner: processes" in mistake.hint


@pytest.mark.parametrize(
    ("given", "named", "joined"),
    [
        (None, None, None),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", "10.0.0.1:6379", "auto"),
        ("local", "10.0.0.1:6379", None),
        ("[::1]:6379", None, "[::1]:6379"),
    ],
)
def test_the_ray_of_a_run_is_given_or_named_or_its_own(given, named, joined, monkeypatch):
    if named is not None:
        monkeypatch.setenv("RAY_ADDRESS", named)
    assert cluster_address(given) == joined


@pytest.mark.parametrize(
    ("given", "named", "said"),
    [
        (None, "http://127.0.0.1:8265", "RAY_ADDRESS: http://127.0.0.1:8265: is where jobs are"),
        ("ray://head:10001", None, "--address ray://head:10001: is no address of a Ray to join"),
        ("head", None, "`--address local` starts a Ray for this run alone."),
    ],
)
def test_what_is_no_ray_to_join_is_said_before_anything_starts(given, named, said, monkeypatch):
    if named is not None:
        monkeypatch.setenv("RAY_ADDRESS", named)
    with pytest.raises(UserError) as caught:
        cluster_address(given)
    assert said in str(caught.value)


def test_what_deepspeed_says_of_its_import_is_not_on_the_terminal():
    """It is imported as accelerate looks for it, whose answer needs no devices."""
    script = (
        "from tsarch.launch.training import quieten; quieten();"
        "import deepspeed; deepspeed.get_accelerator()"
    )
    environment = {n: v for n, v in os.environ.items() if n != "DS_ACCELERATOR"}
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert "WARNING" not in done.stdout + done.stderr
