"""The driver over null ranks: complete rows, no torch in the ranks, the failed rank named."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import pytest
import ray
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from benchmarks import controller_simulated
from benchmarks.controller import fit_line, null_crew
from benchmarks.null_worker import TOKENS_PER_STEP, NullWorker
from tests.helpers import tiny_config
from tsarch.blueprint import resolve
from tsarch.cluster.ray_crew import RayCrew
from tsarch.errors import RankFailedError, RunFailedError
from tsarch.rank.api import RankApi
from tsarch.rank.crew import Draining, drive
from tsarch.rank.pacer import Pacer, Situation
from tsarch.rank.tick_reports import TickReports
from tsarch.records import LossParts, TickReport, TraceEvent

STEPS = 30


class FailingWorker(NullWorker):
    """The first student fails after a few ticks; the others go on."""

    def advance(self, num_ticks):
        if (self._stage.value, self._replica) == ("student", 0) and self._num_done >= 5:
            raise RuntimeError("no more")
        return super().advance(num_ticks)


class BlockedWorker(FailingWorker):
    """The teacher waits for the student that has failed."""

    def gather(self):
        if self._stage.value == "teacher":
            time.sleep(3600)


def test_packed_reports_come_back_as_they_were():
    event = TraceEvent("Forward", "compute", 3, 0, 1.0, 2.0, 0.5)
    full = TickReport("student", 1, 4, 3, LossParts({"student": 0.5}), 7, 1.5, 0.25, 1.0, 2.0)
    full.events.append(event)
    reports = [full, TickReport("teacher", 0, 4, None)]
    again = pickle.loads(pickle.dumps(TickReports(reports)))
    assert again == reports
    assert type(again) is TickReports


def test_the_line_is_found_and_its_misses_told():
    line = fit_line((2, 8, 32), [0.012, 0.018, 0.042])
    assert line.fixed_s == pytest.approx(0.01)
    assert line.per_rank_s == pytest.approx(0.001)
    assert line.residual_s == pytest.approx(0, abs=1e-12)
    assert line.at(1024) == pytest.approx(1.034)
    bent = fit_line((2, 8, 32), [0.012, 0.020, 0.042])
    assert 0 < bent.residual_s < 0.002
    assert bent.largest_relative_residual > 0.05


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("num_ranks", [2, 8])
def test_null_ranks_report_every_step_and_import_no_torch(tmp_path, num_ranks):
    with null_crew(num_ranks, tmp_path / "run") as driver:
        driver.train(STEPS)
        driver.train(STEPS)
        modules = driver.crew.ask(NullWorker.imported_modules)
    assert len(modules) == num_ranks
    for own in modules:
        assert "benchmarks.null_worker" in own
        assert not {"torch", "deepspeed", "transformers"} & set(own)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == list(range(2 * STEPS))
    for row in rows:
        # Sums over ranks: a report that is missing or counted twice would show.
        assert row["loss_teacher"] == 1.5 * (num_ranks // 2)
        assert row["loss_distillation"] == 0.5 * (num_ranks // 2)
        assert row["link_bytes"] == num_ranks
        assert row["tokens"] == TOKENS_PER_STEP
        assert row["grad_norm_teacher"] == row["grad_norm_student"] == 1.0


@pytest.mark.slow
@pytest.mark.ray
def test_ranks_that_share_a_process_report_every_step_too(tmp_path, monkeypatch):
    monkeypatch.setattr(controller_simulated, "RANKS_A_PROCESS", 4)
    with controller_simulated.shared_crew(10, tmp_path / "run") as driver:
        driver.train(STEPS)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert {row["loss_teacher"] for row in rows} == {1.5 * 5}


@pytest.mark.ray
@pytest.mark.slow
def test_the_rank_that_fails_is_named(tmp_path):
    topology = {"teacher": {"replicas": 2}, "cpus_per_rank": 0.1, "device": "cpu"}
    config = tiny_config(tmp_path, topology=topology)
    crew = RayCrew.start(resolve(config), None, Path(tmp_path), lambda _: None, FailingWorker)
    try:
        with pytest.raises(
            RunFailedError, match=r"student 0 \(rank 2\) on .* failed: RuntimeError"
        ):
            for _ in crew.train(0, 200):
                pass
    finally:
        crew.close()
    assert not ray.is_initialized()


@pytest.mark.ray
@pytest.mark.slow
def test_a_rank_that_failed_in_an_earlier_call_is_named_while_others_wait_for_it(tmp_path):
    config = tiny_config(tmp_path, topology={"cpus_per_rank": 0.1, "device": "cpu"})
    crew = RayCrew.start(resolve(config), None, Path(tmp_path), lambda _: None, BlockedWorker)
    try:
        crew.begin(0, 9)
        crew.ask(RankApi.advance, 5)
        crew.submit(RankApi.advance, 1)
        with pytest.raises(RankFailedError, match=r"student 0 \(rank 1\) on .* failed: RuntimeErr"):
            crew.ask(BlockedWorker.gather)
    finally:
        crew.close()


@pytest.mark.ray
@pytest.mark.slow
def test_a_notice_of_preemption_is_an_event_once(tmp_path):
    config = tiny_config(tmp_path, topology={"cpus_per_rank": 0.1, "device": "cpu"})
    crew = RayCrew.start(resolve(config), None, Path(tmp_path), lambda _: None, NullWorker)
    notices = []

    def train() -> None:
        pacer = Pacer(crew.pace)
        pacer.begin(0, 0, 200, crew.begin(0, 200))
        events = drive(crew, pacer, Situation, lambda cut: False)
        notices.extend(event for event in events if isinstance(event, Draining))

    try:
        node = ray.nodes()[0]
        gcs = GcsClient(address=ray.get_runtime_context().gcs_address)
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        gcs.drain_node(node["NodeID"], reason, "spot", int(time.time() * 1000) + 600_000)
        while not notices:
            train()
        train()
    finally:
        crew.close()
    address = node["NodeManagerAddress"]
    assert notices == [Draining(f"notice: {address} will be taken from the cluster")]
