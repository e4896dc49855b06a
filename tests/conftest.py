"""Settings of all tests: no hub, patient hypothesis, GPU tests skipped without a GPU."""

from __future__ import annotations

import os

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
