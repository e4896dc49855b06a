"""Runs served by replicas on Ray Serve: answers, the teacher's states, lost replicas, swaps."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import tsarch
from tests.test_halves import INPUTS, check_equal
from tests.test_pair import run_of
from tsarch.launch.training import run_training
from tsarch.prediction.batch import as_json
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.serving.app import make_app
from tsarch.serving.batcher import Batching
from tsarch.serving.engine import ServiceError
from tsarch.serving.metrics import Metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]
QUEUE_TOKENS = 20_000


@dataclass
class Served:
    """A run on Ray Serve, and a loop in which it is asked."""

    engine: Any
    metrics: Metrics
    loop: asyncio.AbstractEventLoop
    folder: Path
    pair: TrainedPair

    def start(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.start(work).result(120)

    def predict(self, inputs: list[Any], mode: Any = None) -> Any:
        return self.do(self.engine.predict("own", inputs, mode))

    def counts(self, half: str) -> list[Any]:
        """Of all replicas of a half, newly asked."""
        reads = {"teacher": "contexts", "student": "windows"}[half]
        response = self.engine._handles["own"][reads].broadcast("counts")
        return list(response.results(timeout_s=60))


async def many(served: Served, asked: list[tuple[str, Any]], at_once: int = 16) -> list[Any]:
    """Answers to (text, mode), some at a time; exceptions are raised."""
    room = asyncio.Semaphore(at_once)

    async def one(text: str, mode: Any) -> Any:
        async with room:
            return await served.engine.predict("own", [text], mode)

    return await asyncio.gather(*(one(text, mode) for text, mode in asked))


def processes_of_ray() -> set[int]:
    children = psutil.Process().children(recursive=True)
    return {own.pid for own in children if any("ray" in part for part in own.cmdline()[:3])}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Three teachers and a student."""
    from tsarch.cluster.serving import RayEngine
    from tsarch.cluster.serving_deploy import Replicas

    folder = tmp_path_factory.mktemp("served")
    run_training(run_of(folder, "ner"))
    pair, metrics = tsarch.load(folder / "run", device="cpu"), Metrics()
    engine = RayEngine(
        {"own": folder / "run"},
        Replicas(teachers=3, students=1),
        batching=Batching(queue_tokens=QUEUE_TOKENS),
        metrics=metrics,
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    own = Served(engine, metrics, loop, folder / "run", pair)
    yield own
    own.do(engine.close())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    assert not processes_of_ray(), "it leaves no Ray behind"


def test_answers_are_those_of_python(served):
    rows = [{"tokens": ["Rome", "is"], "doc_id": 7}, {"tokens": ["Maria", "left"], "doc_id": "7"}]
    inputs = [*INPUTS["ner"], rows[0], "Paris is near .", rows[1]]
    for mode in served.pair.modes:
        found = served.predict(inputs, mode)
        assert found.mode == mode
        check_equal(found.answers, [as_json(own) for own in served.pair.predict(inputs, mode)])
    assert served.predict(["a"]).mode == "joint"


def test_every_wrong_input_is_named_by_its_own_number(served):
    with pytest.raises(ServiceError) as caught:
        served.predict(["Rome .", " ", ["a", "b"], ["zq" * 45]])
    assert caught.value.status == 422
    assert "inputs[1]" in caught.value.detail
    assert "inputs[0]" not in caught.value.detail
    with pytest.raises(ServiceError, match=r"inputs\[1\]: can't be read whole"):
        served.predict(["Rome .", ["zq" * 45]])
    work = served.engine.predict("own", ["Rome .", ["zq" * 45]], "joint", "mark")
    expected = served.pair.predict(["Rome .", ["zq" * 45]], "joint", "mark")
    check_equal(served.do(work).answers, [as_json(own) for own in expected])
    with pytest.raises(ServiceError, match="is for translation and summarization"):
        served.do(served.engine.predict("own", ["Rome ."], None, "parts"))


@pytest.mark.thorough
def test_a_document_meets_the_teacher_that_has_read_it(served):
    texts = [f"Maria met {n} people in Rome . They left ." for n in range(200)]
    before = served.counts("teacher")
    asked = [(text, "teacher") for text in texts * 25]
    random.Random(0).shuffle(asked)
    served.do(many(served, asked, 64))
    after = served.counts("teacher")
    hits = sum(own.hits for own in after) - sum(own.hits for own in before)
    misses = sum(own.misses for own in after) - sum(own.misses for own in before)
    assert misses == len(texts), "each is read by one replica, once"
    assert hits / (hits + misses) >= 0.95
    assert all(own.cache_contexts > 30 for own in after), "all have a share"


def test_a_student_alone_never_touches_the_teacher(served):
    before = served.counts("teacher")
    served.predict(INPUTS["ner"], "student_alone")
    assert [own.batches for own in served.counts("teacher")] == [own.batches for own in before]
    served.predict(["One more text about Rome ."], "student")
    assert sum(own.sent_bytes for own in served.counts("teacher")) > sum(
        own.sent_bytes for own in before
    )


@pytest.mark.parametrize("half", ["teacher", pytest.param("student", marks=pytest.mark.thorough)])
def test_a_killed_replica_takes_no_request_with_it(served, half):
    asked = [(f"John saw {n} ships near Paris .", "joint") for n in range(400)]
    victim = served.counts(half)[0].pid
    answers = served.start(many(served, asked))
    while not answers.done() and not served.engine._rooms["own"].tokens:
        time.sleep(0.01)
    os.kill(victim, signal.SIGKILL)
    found = answers.result(180)
    assert len(found) == len(asked)
    expected = [as_json(own) for own in served.pair.predict([text for text, _ in asked])]
    check_equal([own.answers[0] for own in found], expected)
    assert victim not in {own.pid for own in served.counts(half)}


def test_a_swap_fails_no_request(served):
    new = served.folder / "versions" / "second"
    shutil.copytree(served.folder, new, ignore=shutil.ignore_patterns("versions"))
    (new / "model" / "note.txt").write_text("other weights, to who looks at their digest")
    assert served.do(served.engine.reload("own")).version.startswith("original@")
    asked = [(f"Maria saw {n} birds .", "joint") for n in range(300)]
    answers = served.start(many(served, asked))
    (served.folder / "current.json").write_text('{"version": "second"}')
    info = served.do(served.engine.reload("own"))
    versions = Counter(own.version.partition("@")[0] for own in answers.result(120))
    assert set(versions) == {"original", "second"}, "some were asked before, some after"
    assert served.engine.runs()[0] == info
    (new / "model" / "task.json").write_text("{")
    with pytest.raises(ServiceError, match="goes on with second@") as caught:
        served.do(served.engine.reload("own"))
    assert caught.value.status == 503
    assert caught.value.retry_after_s
    assert served.predict(["Rome"]).version == info.version


def test_the_app_refuses_what_is_too_much(served):
    async def ask() -> tuple[list[httpx.Response], httpx.Response]:
        app = make_app(served.engine, metrics=served.metrics)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://own") as client:
            text = "Maria went to Rome . " * 250
            bodies = [{"inputs": [f"{n} {text}"]} for n in range(40)]
            asked = (client.post("/predict", json=own, timeout=100) for own in bodies)
            found = await asyncio.gather(*asked)
            given_up_s = time.monotonic() + 60.0
            while True:  # replicas are counted now and then, those that answer
                metrics = await client.get("/metrics")
                if replicas in metrics.text or time.monotonic() > given_up_s:
                    return found, metrics
                await asyncio.sleep(0.5)

    replicas = 'tsarch_replicas{half="teacher",run="own"} 3.0'
    found, metrics = served.do(ask())
    statuses = Counter(own.status_code for own in found)
    assert set(statuses) == {200, 429}
    assert all(int(own.headers["retry-after"]) >= 1 for own in found if own.status_code == 429)
    assert replicas in metrics.text
    assert 'tsarch_queue_tokens{run="own"} 0.0' in metrics.text
