"""Trackers: told in order, each point once, and never the end of a run."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.helpers import ROOT, tiny_blueprint, tiny_config, tracked
from tsarch.config import TRACKERS
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.telling import aside
from tsarch.telling.aside import Aside
from tsarch.telling.once import Once, Points
from tsarch.telling.tracker import TrackedRun, Tracker
from tsarch.telling.tracker_choice import tracker_mistakes
from tsarch.telling.trackers import Trackers, open_trackers


class Noting:
    """A tracker that notes what it is told; `fails_at`: a method that fails."""

    def __init__(self, fails_at: str = "") -> None:
        self.told: list[Any] = []
        self._fails_at = fails_at

    def __getattr__(self, name: str) -> Any:
        def note(*arguments: Any) -> None:
            self.told.append((name, *arguments))
            if name == self._fails_at:
                raise ConnectionError("no route to host")

        return note


def tell(tracker: Tracker | Trackers, steps: Sequence[int], evaluations: Sequence[int]) -> None:
    """Steps with a loss, and evaluations after some of them."""
    for step in steps:
        tracker.step({"step": step, "epoch": 0, "loss_teacher": float(step), "skipped": 0})
        if step + 1 in evaluations:
            tracker.evaluation("validation", step + 1, {"joint": {"f1": step / 10}})


def test_a_tracker_is_told_everything_in_order_by_another_thread():
    noting, said = Noting(), list[str]()
    own = Aside("mine", lambda: noting, said.append)  # type: ignore[arg-type, return-value]
    own.rewind(0, 0)
    tell(own, range(3), [2])
    own.texts("after", [])
    own.ticks([], 0)
    own.close(True)
    names = [name for name, *_ in noting.told]
    assert names == ["rewind", "step", "step", "evaluation", "step", "texts", "ticks", "close"]
    assert noting.told[-1] == ("close", True)
    assert not said


def test_what_a_users_tracker_does_to_what_it_is_told_changes_nothing_in_the_run():
    class Changing(Noting):
        def evaluation(self, split: str, step: int, metrics: Any) -> None:
            metrics["joint"]["f1"] = 99.0
            metrics.clear()

        def step(self, row: Any) -> None:
            row.clear()

    metrics, row = {"joint": {"f1": 0.5}}, {"step": 0, "loss_teacher": 1.0}
    own = Aside("mine", Changing, print)  # type: ignore[arg-type]
    own.evaluation("test", 1, metrics)
    own.step(row)  # type: ignore[arg-type]
    own.close(True)
    assert metrics == {"joint": {"f1": 0.5}}
    assert row == {"step": 0, "loss_teacher": 1.0}


@pytest.mark.parametrize("fails_at", ["step", "close"])
def test_one_that_fails_is_told_nothing_more_and_that_is_said_once(fails_at):
    noting, said = Noting(fails_at), list[str]()
    own = Aside("mine", lambda: noting, said.append)  # type: ignore[arg-type, return-value]
    tell(own, range(5), [])
    own.close(True)
    assert [name for name, *_ in noting.told].count(fails_at) == 1
    assert said == ["warning: the tracker mine is told nothing more: no route to host"]


def test_one_that_cant_be_opened_is_said_once():
    def no_server() -> Tracker:
        raise SystemExit("no server")

    said = list[str]()
    own = Aside("mine", no_server, said.append)
    tell(own, range(5), [])
    own.close(False)
    assert said == ["warning: the tracker mine is told nothing more: no server"]


def test_one_that_hangs_holds_nothing_up(monkeypatch):
    monkeypatch.setattr(aside, "_MOST_WAITING", 3)
    goes_on, said = Event(), list[str]()

    class Hangs(Noting):
        def step(self, _: object) -> None:
            goes_on.wait(60.0)

    own = Aside("mine", Hangs, said.append, patience_s=0.01)  # type: ignore[arg-type]
    tell(own, range(10), [])
    own.close(True)
    goes_on.set()
    (text,) = said
    assert "the tracker mine is told nothing more: 3 calls wait for it" in text


class Kept:
    """A service that keeps what it is told, for all of its runs; `lost`: it can't be reached."""

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, str, float]]] = {}
        self.ends: list[bool] = []

    def open(self, known: str | None) -> KeptRun:
        return KeptRun(self, known or f"run-{len(self.points)}")


class KeptRun:
    """A run there."""

    def __init__(self, service: Kept, own: str) -> None:
        self._service, self.id = service, own
        service.points.setdefault(own, [])

    def add(self, points: Sequence[Points]) -> None:
        rows = ((step, name, value) for step, own in points for name, value in own.items())
        self._service.points[self.id] += rows

    def close(self, is_complete: bool) -> None:
        self._service.ends.append(is_complete)


@pytest.mark.parametrize("every_s", [0.0, 60.0])
def test_a_run_that_was_interrupted_is_one_run_with_each_point_once(tmp_path, every_s):
    services = Kept(), Kept()
    for service, is_interrupted in zip(services, (False, True)):
        run = tracked(tmp_path / str(is_interrupted))
        run.folder.mkdir()
        own = Once(run, "kept", service.open, every_s)
        tell(own, range(5 if is_interrupted else 8), [2, 4, 6])
        if is_interrupted:  # ended without a word after 5 steps, goes on from step 3
            own._add()
            own = Once(run, "kept", service.open, every_s)
            own.rewind(3, 1)
            tell(own, range(3, 8), [4, 6])
        own.close(True)
    assert services[0].points == services[1].points
    assert list(services[1].points) == ["run-0"]
    assert services[1].ends == [True]


def mistakes(tmp_path: Path, *trackers: str, **changes: Any) -> str:
    sections: dict[str, Any] = {"tracking": {"trackers": list(trackers), **changes}}
    return "\n".join(map(str, tracker_mistakes(tiny_blueprint(tmp_path, **sections))))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_one_message_before_anything_starts(name, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, f"tsarch.telling.{name}_run", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    config = tiny_config(tmp_path, tracking={"trackers": [name]}, topology={"runner": "local"})
    with pytest.raises(UserError) as caught:
        run_training(config)
    (mistake,) = caught.value.mistakes
    assert f"needs the package {name}, which is not installed" in mistake.what
    assert mistake.hint == f"pip install 'tsarch[{name}]'"
    assert not (tmp_path / "run").exists()


def test_what_trackers_lack_is_told(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_trackers.py").write_text(
        "class Half:\n    def step(self, row): pass\nnumber = 3\ndef made(run): return None\n"
    )
    (tmp_path / "broken_trackers.py").write_text("1 / 0\n")
    assert "has no key for Weights & Biases" in mistakes(tmp_path, "wandb")
    assert "needs the address of a server" in mistakes(tmp_path, "mlflow")
    assert "needs a run on Ray, and topology.runner is local" in "\n".join(
        map(
            str,
            tracker_mistakes(
                tiny_blueprint(
                    tmp_path, tracking={"trackers": ["prometheus"]}, topology={"runner": "local"}
                )
            ),
        )
    )
    assert "no ticks, evaluation, texts, rewind, close" in mistakes(tmp_path, "my_trackers:Half")
    assert "is no class and no function" in mistakes(tmp_path, "my_trackers:number")
    assert "has no attribute 'nothing'" in mistakes(tmp_path, "my_trackers:nothing")
    assert "No module named 'no_such_trackers'" in mistakes(tmp_path, "no_such_trackers:Mine")
    assert "division by zero" in mistakes(tmp_path, "broken_trackers:Mine")
    assert not mistakes(tmp_path, "tensorboard", "my_trackers:made")
    assert not mistakes(tmp_path, "wandb", wandb_mode="offline")
    assert not mistakes(tmp_path, "mlflow", mlflow_uri="http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("trackers", "what"),
    [
        (["tensorbord"], "`tensorbord` is none of `tensorboard`, `wandb`, `mlflow`"),
        (["wandb", "wandb"], "names a tracker twice"),
    ],
)
def test_a_tracker_that_there_is_not_is_told(tmp_path, trackers, what):
    with pytest.raises(UserError, match=what):
        tiny_config(tmp_path, tracking={"trackers": trackers})


OWN = """
class Mine:
    told = []
    def __init__(self, run): self.told.append(("run", run.name, run.config["run.seed"]))
    def ticks(self, reports, epoch): pass
    def step(self, row):
        self.told.append(("step", row["step"]))
        if row["step"] == 2: raise OSError("the disk is full")
    def evaluation(self, split, step, metrics): self.told.append((split, step, set(metrics)))
    def texts(self, when, texts): pass
    def rewind(self, step, num_evaluations): pass
    def close(self, is_complete): self.told.append(("close", is_complete))
"""


@pytest.mark.slow
def test_a_run_goes_on_without_a_tracker_of_the_users_that_fails(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_tracker.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = tiny_config(
        tmp_path,
        tracking={"trackers": ["own_tracker:Mine"]},
        topology={"runner": "local"},
        schedule={"max_steps": 4},
        evaluation={"before": False},
    )
    assert run_training(config)["steps"] == 4
    assert capsys.readouterr().out.count("own_tracker:Mine is told nothing more") == 1
    told = sys.modules["own_tracker"].Mine.told
    assert told == [("run", "tiny", 0), *(("step", step) for step in range(3))]
    assert not (tmp_path / "run" / "tensorboard").exists()


def interrupted(run: TrackedRun) -> list[str]:
    """Tell a run's trackers of one that is interrupted after 4 steps and goes on from step 2; what
    was said."""
    said = list[str]()
    with suppress(KeyboardInterrupt), open_trackers(run, said.append) as trackers:
        tell(trackers, range(4), [2, 4])
        raise KeyboardInterrupt
    with open_trackers(run, said.append) as trackers:
        trackers.rewind(2, 1)
        tell(trackers, range(2, 6), [4, 6])
    return said


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    """The real package, without a network: what it wrote is read as `wandb sync` reads it."""
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = tracked(tmp_path, trackers=["wandb"], wandb_mode="offline", project="p")
    assert interrupted(run) == []
    wandb.teardown()
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
    rows = [row for file in files for row in wandb_rows(file)]
    (own,) = {file.stem.removeprefix("run-") for file in files}
    assert own == json.loads((tmp_path / "tracking-wandb.json").read_text())["id"]
    losses = [(row["step"], row["train/loss_teacher"]) for row in rows if "train/skipped" in row]
    assert losses == [(step, step) for step in range(6)]
    scores = [(r["step"], r["validation/joint/f1"]) for r in rows if "validation/joint/f1" in r]
    assert scores == [(2, 0.1), (4, 0.3), (6, 0.5)]


def wandb_rows(file: Path) -> Iterator[dict[str, Any]]:
    """What was logged, from wandb's own file."""
    from wandb.proto.wandb_internal_pb2 import Record

    for data in leveldb_records(file.read_bytes(), first=7):
        record = Record.FromString(data)
        if record.HasField("history"):
            items = record.history.item
            yield {i.key or i.nested_key[0]: json.loads(i.value_json) for i in items}


def leveldb_records(log: bytes, first: int) -> Iterator[bytes]:
    """Of a log in LevelDB's format, which begins at `first`: chunks in blocks of 32 KiB, each with
    checksum, length and whether more of its record follows."""
    data, place = b"", first
    while place + 7 <= len(log):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", log, place)
        data += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its end
            yield data
            data = b""


def check_mlflow(uri: str, folder: Path) -> None:
    """An interrupted run is one run of the experiment, with each point once."""
    from mlflow import MlflowClient

    run = tracked(folder, trackers=["mlflow"], mlflow_uri=uri, project="p")
    assert interrupted(run) == []
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("p")
    assert experiment is not None
    (own,) = client.search_runs([experiment.experiment_id])
    assert own.info.run_name == "mine"
    assert own.info.status == "FINISHED"
    assert own.data.params == {"run.seed": "0", "task.name": "ner"}
    losses = client.get_metric_history(own.info.run_id, "train/loss_teacher")
    assert [(m.step, m.value) for m in losses] == [(step, step) for step in range(6)]
    scores = client.get_metric_history(own.info.run_id, "validation/joint/f1")
    assert [(m.step, m.value) for m in scores] == [(2, 0.1), (4, 0.3), (6, 0.5)]


@pytest.mark.slow
def test_mlflow_with_a_store_of_its_own(tmp_path):
    check_mlflow(f"sqlite:///{tmp_path}/store.db", tmp_path)


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """Address of a server of MLflow; its processes are a group, which is ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--workers", "1"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _await_health(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30.0)


def _await_health(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        assert server.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(address, timeout=2.0):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(address)


@pytest.mark.thorough
def test_mlflow_with_a_real_server(mlflow_server, tmp_path):
    check_mlflow(mlflow_server, tmp_path)


@pytest.mark.slow
def test_a_server_of_mlflow_that_is_away_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = tracked(tmp_path, trackers=["mlflow"], mlflow_uri="http://127.0.0.1:9")
    (text,) = interrupted(run)[:1]
    assert "the tracker mlflow is told nothing more" in text


def test_names_of_trackers_are_told_in_the_docs():
    text = (ROOT / "docs" / "operations.md").read_text()
    assert all(f"`{name}`" in text for name in TRACKERS)


ROW: Mapping[str, Any] = {
    "step": 4,
    "epoch": 0,
    "loss_teacher": 2.0,
    "loss_student": None,
    "skipped": 0,
    "grad_norm_teacher": 1.5,
    "learning_rate_factor": 0.5,
    "tokens": 10,
    "wall_s": 2.0,
    "tokens_per_s": 5.0,
    "link_bytes": 7,
    "tied_bytes": 8,
    "link_s": 0.1,
    "link_wait_s": 0.2,
    "tied_s": 0.3,
    "tied_wait_s": 0.4,
    **{f"busy_{stage}_s": 1.0 for stage in ("teacher", "student")},
    **{f"real_share_{stage}": 0.9 for stage in ("teacher", "student")},
}


def test_gauges_of_a_step_and_the_board_that_shows_them(tmp_path, monkeypatch):
    from tsarch.cluster import run_metrics

    found: dict[tuple[str, ...], float] = {}

    class Gauge:
        def __init__(self, name: str, what: str, tag_keys: Sequence[str]) -> None:
            self.name, self.keys = name, set(tag_keys)

        def set(self, value: float, tags: Mapping[str, str]) -> None:
            assert set(tags) == self.keys
            found[self.name, *(v for k, v in tags.items() if k != "run")] = value

    monkeypatch.setattr(run_metrics, "Gauge", Gauge)
    gauges = run_metrics.RunMetrics(tracked(tmp_path))
    gauges.step(dict(ROW))
    gauges.evaluation("validation", 5, {"joint": {"f1": 0.5}})
    assert found["tsarch_loss", "teacher"] == 2.0
    assert ("tsarch_loss", "student") not in found  # it wasn't finite
    assert found["tsarch_step",] == 5.0
    assert found["tsarch_busy_s", "student"] == 1.0
    assert found["tsarch_wait_s", "tied"] == 0.4
    assert found["tsarch_score", "validation", "joint", "f1"] == 0.5
    assert {name for name, *_ in found} == set(run_metrics.GAUGES)
    board = json.loads((ROOT / "cluster" / "grafana-run.json").read_text())
    shown = json.dumps([panel["targets"] for panel in board["panels"]])
    for name in run_metrics.GAUGES:
        assert f"ray_{name}{{" in shown
    for stage in ("teacher", "student"):
        assert f'stage=\\"{stage}\\"' in shown
