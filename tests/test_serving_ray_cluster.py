"""Several runs served on a Ray cluster that others started."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import tsarch
from tests.generative_configs import generative_config
from tests.ray_clusters import ray_cluster
from tests.test_halves import INPUTS, check_equal
from tests.test_pair import run_of
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.prediction.batch import as_json

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.thorough]
ASKED: dict[str, list[Any]] = {
    "qa": INPUTS["qa"],
    "dialogue": [{"history": ["red house"]}, {"history": ["old tree", "new bird"]}],
}


def runs(folder: Path) -> dict[str, Path]:
    """Name → a run; one whose teacher finds the windows to read, one whose answers are texts."""
    for name in ASKED:
        (folder / name).mkdir()
    run_training(run_of(folder / "qa", "qa"))
    own = generative_config(
        folder / "dialogue",
        "dialogue",
        "gpt2",
        run={"folder": str(folder / "dialogue" / "run")},
        topology={"runner": "local", "threads": 1},
        evaluation={"before": False},
        schedule={"max_steps": 2},
    )
    run_training(own)
    return {name: folder / name / "run" for name in ASKED}


async def check_answers(engine: Any, folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        pair = tsarch.load(folder, device="cpu")
        for mode in pair.modes:
            found = await engine.predict(name, ASKED[name], mode)
            check_equal(found.answers, [as_json(own) for own in pair.predict(ASKED[name], mode)])
    await engine.close()


def test_runs_are_served_on_a_cluster_and_it_is_left_as_it_was(tmp_path, monkeypatch):
    import ray

    from tsarch.cluster.joining import join_ray
    from tsarch.cluster.serving import RayEngine
    from tsarch.cluster.serving_deploy import Replicas

    folders = runs(tmp_path)
    with ray_cluster([{"num_cpus": 2}, {"num_cpus": 2}]) as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="can never have room"):
            RayEngine(folders, Replicas(teachers=30), cluster.address)
        assert not ray.is_initialized()
        engine = RayEngine(folders, Replicas(), cluster.address)
        asyncio.run(check_answers(engine, folders))
        assert not ray.is_initialized()
        join_ray(0, cluster.address, lambda _: None)
        assert not ray.util.list_named_actors(all_namespaces=True)
        ray.shutdown()
