"""Settings of all tests: no hub, patient hypothesis, GPU tests skipped without a GPU."""

from __future__ import annotations

import functools
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("RAY_ADDRESS", None)

# Cores are shared with other tests' ranks: no deadlines for single examples.
settings.register_profile("tsarch", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tsarch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch sees none."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU"))


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
