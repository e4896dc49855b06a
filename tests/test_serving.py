"""Runs that are served: answers over HTTP are those of Python, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

import tsarch
from tests.helpers import ROOT
from tests.test_pair import run_of
from tsarch.config import LossConfig
from tsarch.errors import UserError
from tsarch.launch.cli import main
from tsarch.launch.serving import named_runs
from tsarch.launch.training import run_training
from tsarch.prediction.batch import as_json
from tsarch.serving import memory
from tsarch.serving.app import make_app
from tsarch.serving.batcher import Batching
from tsarch.serving.limits import Limits
from tsarch.serving.local_engine import Loading, LocalEngine
from tsarch.serving.metrics import Metrics
from tsarch.serving.server import Server, address_of, listen

pytestmark = pytest.mark.slow
MODES = ("teacher", "student", "joint", "student_alone")
TEXTS = [f"Maria Rossi flew from Rome to Paris {n} times . John stayed ." for n in range(24)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short run whose best weights tag something."""
    folder = tmp_path_factory.mktemp("ner")
    config = run_of(folder, "ner")
    run_training(config.model_copy(update={"loss": LossConfig(label_weights="balanced")}))
    return folder / "run"


@pytest.fixture(scope="module")
def pair(run):
    return tsarch.load(run, device="cpu")


class Served:
    """An app on a port of loopback, in a thread."""

    def __init__(self, folders: dict[str, Path], limits: Limits, **more: Any) -> None:
        metrics = Metrics()
        self.engine = LocalEngine(folders, Loading("cpu"), metrics=metrics, **more)
        self._server = Server(make_app(self.engine, limits=limits, metrics=metrics), 10)
        place = listen("127.0.0.1", 0)
        self.client = httpx.Client(base_url=address_of(place), timeout=60, trust_env=False)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [place]})

    def __enter__(self) -> Served:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    def ask(self, inputs: list[Any], mode: str | None = None, **more: Any) -> httpx.Response:
        return self.client.post("/predict", json={"inputs": inputs, "mode": mode, **more})

    def count(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.fixture(scope="module")
def served(run):
    with Served({"notes": run}, Limits()) as own:
        yield own


def alike(found: Any, expected: Any) -> bool:
    """Equal, scores within rounding."""
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(alike(found[k], expected[k]) for k in found)
    if isinstance(found, list):
        return len(found) == len(expected) and all(map(alike, found, expected))
    if isinstance(found, float):
        return found == pytest.approx(expected, abs=1e-5)
    return found == expected


@pytest.mark.parametrize("mode", [*MODES, None])
def test_answers_are_those_of_python(served, pair, mode):
    inputs = [TEXTS[0] * 30, TEXTS[1].split(), {"tokens": ["Rome"], "doc_id": "a"}, "Paris"]
    expected = json.loads(json.dumps([as_json(own) for own in pair.predict(inputs, mode)]))
    assert any(expected)
    for _ in range(2):  # the second time the teacher's states are kept
        answer = served.ask(inputs, mode).json()
        assert alike(answer["answers"], expected)
    assert answer["mode"] == (mode or "joint")
    assert answer["version"].startswith("original@")
    assert pair.revision.startswith(answer["version"].partition("@")[2])


def test_requests_that_come_together_are_read_together(served, pair):
    expected = {mode: pair.predict(TEXTS, mode) for mode in MODES}
    batches = served.count("tsarch_batch_requests_count")

    def one(number: int) -> bool:
        mode, place = MODES[number % 4], number // 4
        (found,) = served.ask([TEXTS[place]], mode).json()["answers"]
        return alike(found, json.loads(json.dumps(as_json(expected[mode][place]))))

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(one, range(4 * len(TEXTS))))
    assert served.count("tsarch_batch_requests_count") - batches < 4 * len(TEXTS)


def test_the_teacher_reads_a_document_once(served):
    document = " ".join(f"Anna Berg saw {n} ships in Oslo ." for n in range(60))
    before = [served.count(f"tsarch_cache_{name}") for name in ("hits_total", "misses_total")]
    for mode in ("joint", "student", "teacher"):
        assert served.ask([document], mode).status_code == 200
    hits, misses = (
        served.count(f"tsarch_cache_{name}") - own
        for name, own in zip(("hits_total", "misses_total"), before, strict=True)
    )
    assert misses >= 2, "the document should have several contexts"
    assert hits == 2 * misses
    assert served.count("tsarch_cache_bytes") > 0


def test_odd_requests_made_from_the_document_get_documented_answers(served):
    schema = schemathesis.openapi.from_url(f"{served.client.base_url}/openapi.json")
    operations = [own.ok() for own in schema.get_all_operations()]
    assert len(operations) == 5
    statuses = set()
    asked = [(own, GenerationMode.POSITIVE) for own in operations]
    asked += [(own, GenerationMode.NEGATIVE) for own in operations if own.path == "/predict"]
    for operation, mode in asked:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        def ask(case):
            # What a row must have is the task's, which a schema for all of them can't say.
            answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
            statuses.add(answer.status_code)

        ask()
    assert {200, 404, 422} <= statuses
    assert max(statuses) < 500


def test_what_the_task_cannot_read_is_named(served):
    answer = served.ask(["fine", " ", ["a", "zq" * 45], {"txt": "no tokens"}])
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert "inputs[1]: is empty" in detail
    assert "inputs[3]:" in detail
    assert "inputs[0]" not in detail
    assert served.ask([["a", "zq" * 45]]).status_code == 422


def test_what_was_not_read_is_in_the_answer_if_asked_for(served, pair):
    inputs = ["Rome is far .", ["a", "zq" * 45]]
    answer = served.ask(inputs, on_unread="mark").json()
    expected = json.loads(json.dumps([as_json(own) for own in pair.predict(inputs, None, "mark")]))
    assert alike(answer["answers"], expected)
    assert [isinstance(own, dict) and own["kind"] for own in expected] == [False, "partly_read"]
    refused = served.ask(inputs, on_unread="parts")
    assert refused.status_code == 422
    assert "is for translation and summarization" in refused.json()["detail"]
    assert served.ask(inputs, on_unread="cut").status_code == 422


def test_a_full_queue_refuses_and_goes_on(run):
    with Served({"notes": run}, Limits(), batching=Batching(64, 0.0, 150)) as own:
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda text: own.ask([text * 4]), TEXTS * 2))
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 429}
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
        too_much = own.ask([TEXTS[0] * 40])
        assert (too_much.status_code, "Split it" in too_much.text) == (413, True)
        assert own.ask([TEXTS[0]]).status_code == 200
        assert own.count("tsarch_queue_tokens") == 0


def versioned(run: Path, folder: Path, name: str) -> None:
    """Make a copy of a run's own files its version of that name."""
    shutil.copytree(run, folder / "versions" / name, ignore=shutil.ignore_patterns("versions"))


def choose(folder: Path, name: str) -> None:
    new = folder / "new.json"
    new.write_text(json.dumps({"version": name}), encoding="utf-8")
    new.replace(folder / "current.json")


def test_a_swap_under_load_fails_no_request(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("v2", "v3"):
        versioned(run, folder, name)
    statuses, versions, done = [], [], threading.Event()
    with Served({"notes": folder}, Limits()) as own:

        def ask() -> None:
            while not done.is_set():
                answer = own.ask([TEXTS[len(statuses) % len(TEXTS)]])
                statuses.append(answer.status_code)
                versions.append(answer.json().get("version", "").partition("@")[0])

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert own.client.post("/runs/notes/reload").json()["version"].startswith("original@")
        for name in ("v2", "v3"):
            choose(folder, name)
            answer = own.client.post("/runs/notes/reload")
            assert answer.json()["version"].startswith(f"{name}@")
            count = len(statuses)
            while len(statuses) < count + 20:
                time.sleep(0.01)
        (folder / "versions" / "v3" / "model" / "task.json").write_text("{")
        broken = own.client.post("/runs/notes/reload")
        assert (broken.status_code, "goes on with v3@" in broken.text) == (503, True)
        assert own.ask(["Rome"]).status_code == 200
        done.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert list(dict.fromkeys(versions)) == ["original", "v2", "v3"]


def test_several_runs_answer_by_name_and_keep_their_states_apart(run, tmp_path):
    run_training(run_of(tmp_path, "classification"))
    other = tsarch.load(tmp_path / "run", device="cpu")
    with Served({"tags": run, "kinds": tmp_path / "run"}, Limits()) as own:
        assert own.ask(["Rome"]).status_code == 422
        found = own.ask(["A fine day ."], run="kinds").json()
        expected = [as_json(answer) for answer in other.predict(["A fine day ."])]
        assert alike(found["answers"], expected)
        assert isinstance(own.ask(["Rome"], run="tags").json()["answers"][0], list)
        for info in own.client.get("/runs").json():
            for example in info["examples"]:
                for mode in info["modes"]:
                    assert own.ask([example], mode, run=info["name"]).status_code == 200


@pytest.mark.thorough
@pytest.mark.parametrize(
    "task", ["relation", "qa", "translation", "summarization", "dialogue", "code"]
)
def test_examples_of_every_task_are_answered_as_in_python(tmp_path, task):
    from tests.generative_configs import generative_raw
    from tsarch.config_loading import parse_config

    if task in ("relation", "qa"):
        config = run_of(tmp_path, task)
    else:
        raw = generative_raw(tmp_path, task, "llama")
        raw["run"]["folder"] = str(tmp_path / "run")
        raw["schedule"] = {"max_steps": 2}
        raw["topology"] = {"runner": "local", "device": "cpu", "threads": 1}
        raw["decoding"] = {"max_texts": 1}
        raw["evaluation"] = {"before": False}
        config = parse_config(raw, "test")
    run_training(config)
    pair = tsarch.load(tmp_path / "run", device="cpu")

    async def answered() -> list[Any]:
        engine = LocalEngine({"own": tmp_path / "run"}, Loading("cpu"))
        (info,) = engine.runs()
        assert info.examples
        found = await asyncio.gather(
            *(engine.predict("own", [example], None) for example in info.examples)
        )
        await engine.close()
        return [(example, own.answers[0]) for example, own in zip(info.examples, found)]

    for example, found in asyncio.run(answered()):
        (expected,) = pair.predict([example])
        assert alike(found, as_json(expected))


def test_runs_have_names_and_must_be_there(run, tmp_path):
    assert named_runs([str(run), f"b={run}"]) == {"run": str(run), "b": str(run)}
    for runs, said in (
        ([str(run), str(run)], "is the second run called run"),
        ([f"a b={run}"], "has no name"),
        (["x=/nowhere"], "is not a folder"),
    ):
        with pytest.raises(UserError, match=said):
            named_runs(runs)
    with pytest.raises(UserError, match="run empty"):
        LocalEngine({"empty": tmp_path})


def test_memory_is_checked_before_models_are_loaded(run, monkeypatch):
    monkeypatch.setattr(memory, "_WORK_BYTES", 1 << 50)
    with pytest.raises(UserError, match="memory: is short"):
        LocalEngine({"notes": run})


def test_once_answers_an_example_of_each_run_and_ends(run, capsys, monkeypatch):
    monkeypatch.setenv("TSARCH_SERVE_TOKEN", "a-token-of-tests-0123456789")
    with pytest.raises(SystemExit) as caught:
        main(["serve", f"a={run}", f"b={run}", "--port", "0", "--once", "--device", "cpu"])
    assert caught.value.code == 0
    told = capsys.readouterr()
    found = [json.loads(line) for line in told.out.splitlines()]
    assert [own["run"] for own in found] == ["a", "b"]
    assert all(len(own["answers"]) == 1 for own in found)
    assert "a-token-of-tests" not in told.err + told.out


def test_an_address_that_is_taken_is_told_before_models_are_loaded(run, capsys):
    with listen("127.0.0.1", 0) as place, pytest.raises(SystemExit) as caught:
        main(["serve", str(run), "--port", str(place.getsockname()[1])])
    assert caught.value.code == 2
    assert "can't be listened at" in capsys.readouterr().err


def test_sigterm_answers_what_was_accepted(run):
    command = [sys.executable, "-c", "from tsarch.launch.cli import main; main()", "serve"]
    process = subprocess.Popen(
        [*command, str(run), "--port", "0", "--host", "0.0.0.0", "--device", "cpu"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stderr is not None
        lines = []
        while "serving at" not in (line := process.stderr.readline()):
            lines.append(line)
            assert line, lines
        assert any("everybody there may ask" in own for own in lines)
        client = httpx.Client(base_url=line.split()[-1], timeout=60, trust_env=False)
        body = {"inputs": [TEXTS[0] * 100] * 8}
        assert client.post("/predict", json={"inputs": ["Rome"]}).status_code == 200
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(client.post, "/predict", json=body)
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            assert pending.result(60).status_code == 200
        assert process.wait(90) == 0
        assert "answering what was accepted" in process.stderr.read()
    finally:
        process.kill()
