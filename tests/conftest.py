"""Settings of all tests: no hub, patient hypothesis, GPU tests skipped without a GPU."""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.suites.crews import Crews
    from tsarch.blueprint import Blueprint

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("RAY_ADDRESS", None)
# Two tests run at a time. A second thread of each, for models this small, only spins: it takes the
# cores from the other test, so that both need many times as long.
# Ray's workers would give way to all other processes, also to the other test.
os.environ |= {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}

# Cores are shared with other tests' ranks: no deadlines for single examples. CI tries the same ones
# in every run, so that no submission fails by chance.
settings.register_profile(
    "tsarch",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tsarch")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are no part of a test's name: gzip's hold the time, and processes that run tests must
    agree on names."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share ranks come first, those with as many replicas together; tests marked `gpu`
    are skipped where torch sees none."""
    items.sort(key=_place)
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU"))


def _place(item: pytest.Item) -> tuple[Any, ...]:
    mark = item.get_closest_marker("replicas")
    if mark is None:
        return (True,)
    return False, mark.kwargs.get("runner", ""), mark.args, "spoils" in mark.kwargs


@pytest.fixture(scope="session")
def crews(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crews]:
    """Ranks that tests marked `replicas` share: starting them takes longer than most tests."""
    from tests.suites.crews import Crews

    with closing(Crews(tmp_path_factory.mktemp("crews"))) as shared:
        yield shared


class _Lent:
    """Shared ranks for a run, which doesn't end them."""

    def __init__(self, crews: Crews, blueprint: Blueprint) -> None:
        self._crew = crews.get(blueprint.config)
        self.blueprint = blueprint

    def __getattr__(self, name: str) -> Any:
        return getattr(self._crew, name)

    def close(self) -> None:
        """Others go on with them."""


@pytest.fixture
def lent_ranks(crews: Crews, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole runs (`run_training`) train on the shared ranks too."""

    def gather(_address: str | None, _launch: Any, blueprint: Blueprint, *_: Any) -> _Lent:
        return _Lent(crews, blueprint)

    monkeypatch.setattr("tsarch.launch.training.gather", gather)


@pytest.fixture
def forked_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain processes of runs (`topology.runner: processes`) start in half a second."""
    from tests.suites.forked import forked

    monkeypatch.setattr("tsarch.rank.members._SPAWN", forked())


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End shared ranks after the last test that wants them."""
    mark = item.get_closest_marker("replicas")
    is_last = nextitem is None or nextitem.get_closest_marker("replicas") is None
    if mark is not None and (is_last or "spoils" in mark.kwargs):
        shared = item.funcargs.get("crews")  # type: ignore[attr-defined]
        if shared is not None:  # the test was not skipped
            shared.close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--numprocesses` a process does all tests of a file, one all of the files with a Ray."""
    from xdist.scheduler import LoadFileScheduling

    @functools.cache
    def group(file: str) -> str:
        starts_ray = "pytest.mark.ray" in (config.rootpath / file).read_text(encoding="utf-8")
        return "ray" if starts_ray else file

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid.partition("::")[0])

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def ner_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run whose best weights tag something. It is only read."""
    from tests.test_pair import run_of
    from tsarch.config import LossConfig
    from tsarch.launch.training import run_training

    folder = tmp_path_factory.mktemp("ner")
    config = run_of(folder, "ner")
    loss = LossConfig(label_weights="balanced")
    longer = config.schedule.model_copy(update={"max_steps": 12})
    run_training(config.model_copy(update={"loss": loss, "schedule": longer}))
    return folder / "run"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket of an S3 server on loopback, which the environment names."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    # A file system of an earlier server would be found again, and moto keeps buckets for good.
    S3FileSystem.clear_instance_cache()
    name = f"bucket-{port}-{secrets.token_hex(4)}"
    S3FileSystem().mkdir(name)
    try:
        yield f"s3://{name}"
    finally:
        server.stop()
        S3FileSystem.clear_instance_cache()
