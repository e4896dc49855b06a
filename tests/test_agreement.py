"""Checks of the ranks against each other: every disagreement by itself, and ranks that lie."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from benchmarks.null_worker import NullWorker
from tests.helpers import QUICKSTART_MODEL, tiny_blueprint, tiny_config
from tsarch.blueprint import resolve
from tsarch.cluster import probe
from tsarch.cluster.agreement import (
    MAX_CLOCK_GAP_S,
    NO_GPU,
    Clock,
    Facts,
    RankFacts,
    disagreements,
)
from tsarch.cluster.probe import ActorApi, Request, check_ranks, gather_facts, source_hash
from tsarch.cluster.ray_crew import RayCrew
from tsarch.errors import Mistake, UserError
from tsarch.planning.capacity import RankNeed
from tsarch.planning.memory import States
from tsarch.rank.api import name_of
from tsarch.topology import STAGES, Stage

GB = 10**9
SAME = Facts("10.0.0.1", {"torch": "2.13.0", "Python": "3.11"}, "cpu", "", 64 * GB)
GPU = replace(SAME, device="cuda", device_name="H100", free_device_bytes=80 * GB)


def needs(unit: int) -> dict[Stage, RankNeed]:
    """5 units of states, and 3 of host memory for checkpoints."""
    states = States(unit, unit, 2 * unit)
    return {stage: RankNeed(stage, 2, states, States(unit), 0, 3 * unit, 0) for stage in STAGES}


NEEDS = needs(GB)
LITTLE = needs(10**6)


def ranks(*facts: Facts, clocks: dict[int, Clock] | None = None) -> list[RankFacts]:
    """The first half are teachers."""
    half = len(facts) // 2
    return [
        RankFacts(
            rank,
            Stage.TEACHER if rank < half else Stage.STUDENT,
            own,
            (clocks or {}).get(rank, Clock(-0.01, 0.01)),
        )
        for rank, own in enumerate(facts)
    ]


def only(found: list[Mistake]) -> str:
    assert len(found) == 1, found
    return str(found[0])


def on(node: str, facts: Facts = SAME, **changes: Any) -> Facts:
    return replace(facts, node=node, **changes)


def test_ranks_that_agree():
    assert disagreements(ranks(SAME, SAME, on("10.0.0.2"), on("10.0.0.2")), SAME, NEEDS) == []
    assert disagreements(ranks(GPU, GPU, on("10.0.0.2", GPU), on("10.0.0.2", GPU)), SAME, {}) == []


def test_other_versions_name_the_nodes_and_ranks_that_have_them():
    other = on("10.0.0.2", versions={"torch": "2.12.1", "Python": "3.11"})
    text = only(disagreements(ranks(SAME, SAME, SAME, other, other), SAME, {}))
    assert text.startswith(
        "versions: torch: is 2.13.0 on the driver (10.0.0.1); 2.13.0 on node 10.0.0.1 (ranks 0–2); "
        "2.12.1 on node 10.0.0.2 (ranks 3–4). Install the same"
    )


def test_a_driver_with_another_version_is_one_who_disagrees_but_its_build_may_be_another():
    driver = on("10.0.0.9", versions={"torch": "2.12.1", "Python": "3.11"})
    text = only(disagreements(ranks(SAME, SAME), driver, {}))
    assert "is 2.12.1 on the driver (10.0.0.9); 2.13.0 on node 10.0.0.1 (ranks 0–1)." in text
    driver = on("10.0.0.9", versions={"torch": "2.13.0+cpu", "Python": "3.11"})
    assert disagreements(ranks(SAME, SAME), driver, {}) == []
    other = on("10.0.0.2", versions={"torch": "2.13.0+cu130", "Python": "3.11"})
    assert "2.13.0+cu130 on node 10.0.0.2" in only(disagreements(ranks(SAME, other), SAME, {}))


def test_cuda_is_compared_where_there_is_one():
    old, new = ({**SAME.versions, "CUDA": v} for v in ("12.8", "13.0"))
    found = ranks(replace(GPU, versions=new), on("10.0.0.2", GPU, versions=old))
    assert only(disagreements(found, SAME, {})).startswith("versions: CUDA: is 13.0 on node 10.0.")
    assert disagreements(ranks(*[replace(GPU, versions=new)] * 2), SAME, {}) == []


def test_a_gpu_beside_cpus_is_refused_in_any_stage():
    text = only(disagreements(ranks(SAME, SAME, SAME, on("10.0.0.2", GPU)), SAME, {}))
    assert "topology.device: is cpu on node 10.0.0.1 (ranks 0–2); cuda on node 10.0.0.2" in text


def test_a_rank_without_the_gpu_that_it_should_have():
    text = only(disagreements(ranks(GPU, on("10.0.0.2", device=NO_GPU)), SAME, {}))
    assert "topology.device: cuda: torch sees no GPU on node 10.0.0.2 (rank 1)." in text


def test_different_gpus_may_be_in_different_stages_only():
    other = on("10.0.0.2", GPU, device_name="A100")
    assert disagreements(ranks(GPU, GPU, other, other), SAME, {}) == []
    text = only(disagreements(ranks(GPU, other, other, other), SAME, {}))
    assert "topology.teacher: its ranks have different GPUs: H100 on node 10.0.0.1 (rank 0)" in text


@pytest.mark.parametrize(
    ("clock", "refused"),
    [
        (Clock(2.5, 2.6), True),
        (Clock(-2.6, -2.5), True),
        (Clock(1.0, 1.1), False),
        (Clock(-3.0, 3.0), False),  # a slow answer tells nothing
        (Clock(MAX_CLOCK_GAP_S - 0.01, MAX_CLOCK_GAP_S + 5), False),
    ],
)
def test_clocks(clock, refused):
    found = disagreements(ranks(SAME, on("10.0.0.2"), clocks={1: clock}), SAME, {})
    assert bool(found) is refused
    if refused:
        assert f"node 10.0.0.2 {clock.middle_s:+.1f} s" in only(found)
        assert "node 10.0.0.1 +0.0 s" in only(found)


def test_clocks_of_two_nodes_are_compared_with_one_another_too():
    clocks = {0: Clock(1.5, 1.6), 1: Clock(-1.6, -1.5)}
    found = disagreements(ranks(on("10.0.0.2"), on("10.0.0.3"), clocks=clocks), SAME, {})
    assert only(found).startswith("clocks: are 3.0 s apart")


def test_folders_that_are_not_the_drivers():
    other = on("10.0.0.2", folders={"/runs/x/logs": "is not the driver's folder"})
    text = only(disagreements(ranks(SAME, other, SAME, other), SAME, {}))
    assert text.startswith(
        "shared folder: /runs/x/logs: is not the driver's folder on node 10.0.0.2 (ranks 1, 3)."
    )


def test_files_that_are_missing_or_others():
    driver = replace(SAME, sizes={"/data/train": 100, "/data/test": 10})
    lacking = on("10.0.0.2", sizes={"/data/train": None, "/data/test": 10})
    other = on("10.0.0.3", sizes={"/data/train": 100, "/data/test": 11})
    first, second = disagreements(ranks(driver, lacking, other, driver), driver, {})
    assert str(first).startswith("/data/train: can't be read on node 10.0.0.2 (rank 1).")
    assert "/data/test: has 10 bytes on the driver (10.0.0.1), but 11 bytes on" in str(second)
    assert "node 10.0.0.3 (rank 2)" in str(second)


def test_the_memory_of_a_node_is_for_all_of_its_ranks():
    # A rank on a CPU: 5 GB of states, 3 GB of the copy.
    enough, little = replace(SAME, free_host_bytes=16 * GB), on("10.0.0.2", free_host_bytes=15 * GB)
    text = only(disagreements(ranks(enough, enough, little, little), SAME, NEEDS))
    assert text.startswith("memory: node 10.0.0.2 (ranks 2–3) need 16.0 GB of host memory")
    assert "15.0 GB are free there" in text
    assert disagreements(ranks(little, little), SAME, {}) == []


def test_what_makes_up_for_a_lost_node_takes_memory_on_several():
    kept = {stage: replace(own, copy=2 * GB, in_turn=2) for stage, own in NEEDS.items()}
    for other, needed in (("10.0.0.1", 28), ("10.0.0.2", 14 + 2 + 2 * 2)):
        here, there = (replace(SAME, node=node) for node in ("10.0.0.1", other))
        enough = [replace(own, free_host_bytes=needed * GB) for own in (here, here, there, there)]
        assert not disagreements(ranks(*enough), SAME, kept)
        little = [replace(own, free_host_bytes=needed * GB - 1) for own in enough]
        text = str(disagreements(ranks(*little), SAME, kept)[0])
        assert f"need {needed}.0 GB of host memory" in text
        assert "`checkpoint.in_memory_every_steps: null`" in text


def test_the_memory_of_a_gpu_is_for_one_rank():
    full = replace(GPU, free_device_bytes=4 * GB, free_host_bytes=6 * GB)
    text = only(disagreements(ranks(GPU, full), SAME, NEEDS))
    assert "node 10.0.0.1 (rank 1), a student, needs 5.0 GB of its GPU for states, 4.0 GB" in text


def test_everything_is_said_at_once():
    other = on(
        "10.0.0.2",
        versions={"torch": "1.0", "Python": "3.10"},
        device="cuda",
        folders={"/runs": "can't be written"},
        free_host_bytes=0,
    )
    found = disagreements(ranks(SAME, other, clocks={1: Clock(9.0, 9.1)}), SAME, NEEDS)
    assert [mistake.where for mistake in found] == [
        "versions: torch",
        "versions: Python",
        "topology.device",
        "clocks",
        "shared folder: /runs",
        "memory",
    ]


def test_the_hash_changes_with_any_file(tmp_path, monkeypatch):
    files = [tmp_path / "tsarch" / "a.py", tmp_path / "cluster" / "b.py"]
    for file in files:
        file.parent.mkdir()
        file.touch()
    (tmp_path / "tsarch" / "cluster").symlink_to("../cluster")
    monkeypatch.setattr(probe, "__file__", str(tmp_path / "tsarch" / "cluster" / "probe.py"))
    hashes = [source_hash.__wrapped__()]
    for change in (
        lambda: files[0].write_text("x"),
        lambda: files[1].rename(files[1].parent / "c.py"),
    ):
        change()
        hashes.append(source_hash.__wrapped__())
    assert len(set(hashes)) == 3
    assert source_hash.__wrapped__() == hashes[-1]


class TestWhatARankLooksAt:
    @pytest.fixture(autouse=True)
    def no_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(probe.ray.util, "get_node_ip_address", lambda: "10.0.0.1")

    def test_the_drivers_marks(self, tmp_path):
        marks = {str(tmp_path / name / ".seen"): "token" for name in ("seen", "other", "none")}
        for name, content in (("seen", "token"), ("other", "another")):
            (tmp_path / name).mkdir()
            (tmp_path / name / ".seen").write_text(content)
        found = gather_facts(Request("cpu", marks, ())).folders
        assert found == {str(tmp_path / n): "is not the driver's folder" for n in ("other", "none")}

    def test_folders_that_it_can_not_write(self, tmp_path, monkeypatch):
        mark = tmp_path / ".seen"
        mark.write_text("token")
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may always
        found = gather_facts(Request("cpu", {str(mark): "token"}, ())).folders
        assert found == {str(tmp_path): "can't be written"}

    def test_files_and_models(self, tmp_path):
        (tmp_path / "data").write_bytes(b"12345")
        names = (str(tmp_path / "data"), str(tmp_path / "none"), QUICKSTART_MODEL, "a/hub-name")
        sizes = gather_facts(Request("cpu", {}, names)).sizes
        assert sizes[names[0]] == 5
        assert sizes[names[1]] is None
        assert (sizes[QUICKSTART_MODEL] or 0) > 50_000_000
        assert sizes["a/hub-name"] is None

    def test_it_takes_a_fraction_of_a_second(self):
        started_s = time.process_time()  # not what other processes of the machine take
        facts = gather_facts(Request("cpu", {}, (QUICKSTART_MODEL,)))
        assert time.process_time() - started_s < 1
        assert {"Python", "torch", "deepspeed", "ray", "transformers"} < set(facts.versions)
        assert "missing" not in facts.versions.values()
        assert facts.free_host_bytes > 0

    def test_it_starts_no_ray(self):
        assert gather_facts(Request("cpu", {}, ())).gpu_ids == ()
        assert not ray.is_initialized()


class Told:
    """A crew of two ranks that answer what a test wants."""

    def __init__(self, seen: bool = True, clock_s: float = 0.0) -> None:
        self.seen, self.clock_s = seen, clock_s
        self.requests: list[Request] = []

    def ask(self, method: Any, *arguments: Any) -> list[Any]:
        if method is ActorApi.wall_clock:
            return [time.time(), time.time() + self.clock_s]
        (request,) = arguments
        self.requests.append(request)
        facts = gather_facts(request)
        marks = request.marks if self.seen else dict.fromkeys(request.marks, "")
        return [facts, replace(gather_facts(replace(request, marks=marks)), node="10.0.0.2")]


class TestTheDriver:
    @pytest.fixture(autouse=True)
    def no_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(probe.ray.util, "get_node_ip_address", lambda: "10.0.0.1")

    def test_asks_for_the_run_folder_and_checkpoints_elsewhere(self, tmp_path):
        blueprint = tiny_blueprint(
            tmp_path, checkpoint={"folder": str(tmp_path / "elsewhere" / "c")}
        )
        logs, told = tmp_path / "run" / "logs", Told()
        check_ranks(told, blueprint, logs, None)
        (request,) = told.requests
        asked = {str(Path(mark).parent) for mark in request.marks}
        assert asked == {str(logs), str(tmp_path / "elsewhere" / "c")}
        assert not list(logs.iterdir()), "the marks go"
        assert str(blueprint.data.train) in request.names

    def test_does_not_look_into_object_stores(self, tmp_path):
        blueprint = tiny_blueprint(tmp_path, checkpoint={"folder": "memory://bucket/run"})
        check_ranks(told := Told(), blueprint, tmp_path / "logs", None)
        assert len(told.requests[0].marks) == 1

    def test_names_a_node_that_does_not_share_its_folder_and_leaves_no_run(self, tmp_path):
        logs = tmp_path / "run" / "logs"
        logs.mkdir(parents=True)
        (logs / "rank-0.log").touch()
        with pytest.raises(UserError, match=r"not the driver's folder on node 10.0.0.2 \(rank 1\)"):
            check_ranks(Told(seen=False), tiny_blueprint(tmp_path), logs, None)
        assert not logs.parent.exists()

    def test_keeps_what_the_folder_held(self, tmp_path):
        logs = tmp_path / "run" / "logs"
        logs.mkdir(parents=True)
        (logs / "rank-0.log").write_text("of the run that is resumed")
        with pytest.raises(UserError, match=r"node 10\.0\.0\.2 [+]30\.0 s"):
            check_ranks(Told(clock_s=30.0), tiny_blueprint(tmp_path), logs, None)
        assert [path.name for path in logs.iterdir()] == ["rank-0.log"]

    def test_says_where_it_can_not_write(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="can't be written"):
            check_ranks(Told(), tiny_blueprint(tmp_path), tmp_path / "file" / "logs", None)


class LyingWorker(NullWorker):
    """The student claims to be on another host, with another torch, clock and disk."""

    def probe(self, request: Request) -> Facts:
        if self._stage is Stage.TEACHER:
            return super().probe(request)
        elsewhere = {f"{mark}-elsewhere": content for mark, content in request.marks.items()}
        facts = super().probe(replace(request, marks=elsewhere))
        versions = {**facts.versions, "torch": "1.0"}
        return replace(facts, node="10.0.0.2", versions=versions, free_host_bytes=0)

    def wall_clock(self) -> float:
        return super().wall_clock() + (3600 if self._stage is Stage.STUDENT else 0)


@pytest.mark.ray
@pytest.mark.slow
def test_ranks_that_disagree_end_the_run_before_it_starts(tmp_path):
    config = tiny_config(tmp_path, topology={"cpus_per_rank": 0.1, "device": "cpu"})
    logs = tmp_path / "run" / "logs"
    with pytest.raises(UserError) as caught:
        RayCrew.start(resolve(config), None, logs, lambda _: None, LyingWorker, needs=LITTLE)
    wheres = [mistake.where for mistake in caught.value.mistakes]
    assert wheres == ["versions: torch", "clocks", f"shared folder: {logs}", "memory"]
    assert all("node 10.0.0.2" in mistake.what for mistake in caught.value.mistakes)
    assert not logs.exists()
    assert not ray.is_initialized()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.replicas(1, 1, runner="ray")
def test_ranks_that_agree_are_asked_once_and_for_the_time(tmp_path, crews, monkeypatch):
    config = tiny_config(tmp_path)
    crew = crews.get(config)
    asked: Counter[str] = Counter()

    def ask(method: Any, *arguments: Any) -> list[Any]:
        asked[name_of(method)] += 1
        return RayCrew.ask(crew, method, *arguments)

    monkeypatch.setattr(crew, "ask", ask)
    check_ranks(crew, resolve(config), tmp_path / "logs", LITTLE)
    assert asked == {"probe": 1, "wall_clock": 1}


def test_runs_that_teach_and_start_must_be_on_every_host(tmp_path):
    blueprint = tiny_blueprint(
        tmp_path,
        run={"start_from": "first/model"},
        distillation={"weight": 0.5, "from_run": ["runs/a", "runs/b"]},
    )
    named = set(probe.named_files(blueprint))
    assert {"first/model", "runs/a/model", "runs/b/model"} < named
