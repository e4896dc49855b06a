"""The app in front of an engine: what it lets in, what it says, and how it counts. No models."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tsarch.config import DataConfig
from tsarch.data.corpus import read_rows
from tsarch.errors import UserError
from tsarch.inputs.rows import as_rows
from tsarch.launch import serving
from tsarch.launch.cli import main
from tsarch.serving.access_tokens import AccessTokens, read_tokens
from tsarch.serving.app import make_app
from tsarch.serving.engine import Answered, RunInfo, ServiceError
from tsarch.serving.examples import examples_of
from tsarch.serving.following import follow
from tsarch.serving.limits import Limits, parse_limits
from tsarch.task_names import TASKS
from tsarch.tasks.registry import row_reader

TOKEN = "a-token-of-tests-0123456789"


@dataclass
class Echo:
    """An engine that says what it was asked."""

    names: tuple[str, ...] = ("notes",)
    delay_s: float = 0.0
    error: Exception | None = None
    asked: list[Any] = field(default_factory=list)
    closed: bool = False

    def runs(self) -> tuple[RunInfo, ...]:
        return tuple(
            RunInfo(
                name,
                task="summarization",
                labels=(),
                modes=("teacher", "joint"),
                default_mode="joint",
                version="v1",
                examples=("a text",),
                columns={"document": "document"},
                span_ends="exclusive",
            )
            for name in self.names
        )

    async def predict(self, run, inputs, mode, on_unread):
        self.asked.append((run, inputs, mode, on_unread))
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        answers = [{"kind": "text", "text": str(own), "score": None} for own in inputs]
        return Answered(run, "v1", mode or "joint", answers, 7)

    async def reload(self, run):
        return self.runs()[self.names.index(run)]

    async def close(self):
        self.closed = True


def ask(app: Any, method: str, path: str, **more: Any) -> httpx.Response:
    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **more)

    return asyncio.run(asked())


def post(app: Any, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json", **headers}
    return ask(app, "POST", "/predict", content=content, headers=headers)


def test_a_request_is_passed_on_and_answered_in_order():
    engine = Echo()
    answer = post(make_app(engine), {"inputs": ["one", ["t", "wo"], {"document": "three"}]})
    assert answer.status_code == 200
    body = answer.json()
    assert [own["text"] for own in body["answers"]] == [
        "one",
        "['t', 'wo']",
        "{'document': 'three'}",
    ]
    assert (body["run"], body["version"], body["mode"]) == ("notes", "v1", "joint")
    assert body["seconds"] >= 0
    assert engine.asked == [
        ("notes", ["one", ["t", "wo"], {"document": "three"}], "joint", "error")
    ]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 422, "must be a JSON object"),
        (b"{", 422, "is no JSON"),
        (b"[1]", 422, "must be a JSON object"),
        (b"null", 422, "must be a JSON object"),
        (b"\xff\xfe\x00", 422, "can't be read as JSON"),
        (b'{"inputs": [], "mode": "joint"}', 422, "inputs: list should have at least 1 item"),
        (b'{"inputs": "text"}', 422, "inputs: input should be a valid list"),
        (b'{"inputs": [3]}', 422, r"inputs[0]: is no text, no list of words, and no row"),
        (b'{"inputs": ["a", null]}', 422, r"inputs[1]: is no text"),
        (b'{"input": ["a"]}', 422, "inputs: field required"),
        (b'{"inputs": ["\\ud800"]}', 422, "inputs[0]: has half a surrogate pair"),
        (b'{"inputs": [{"\\udfff": "a"}]}', 422, "surrogate"),
        (b'{"inputs": ["a"], "\\ud800": 1}', 422, "unicode"),
        (b'{"inputs": [{"a": NaN}]}', 422, "has nan, which is no number of JSON"),
        (b'{"inputs": [{"a": [1e999]}]}', 422, "has inf, which is no number of JSON"),
        (b'{"inputs": [{"a": 99999999999999999999}]}', 422, "more than 64 bits"),
        (b'{"inputs": [{"a": ' + b"9" * 5000 + b"}]}", 422, "can't be read as JSON"),
        (b'{"inputs": [' + b"[" * 100_000, 422, "can't be read as JSON"),
        (b'{"inputs": [{"a": ' + b"[" * 40 + b"]" * 40 + b"}]}", 422, "too many lists"),
        (b'{"inputs": ["a"], "mode": "best"}', 422, "mode: input should be"),
        (b'{"inputs": ["a"], "mode": "student"}', 422, "It has teacher, joint"),
        (b'{"inputs": ["a"], "run": "other"}', 404, "Served: notes"),
        (b'{"inputs": ["a"], "run": 3}', 422, "run: input should be a valid string"),
        (json.dumps({"inputs": ["a"] * 9}).encode(), 413, "9 inputs, of which 8 are read at most"),
        (b'{"inputs": ["' + b"x" * 101 + b'"]}', 413, "more than 100 characters"),
        (b'{"inputs": ["' + b"x" * 1200 + b'"]}', 413, "The body has more than 0.00105 MiB"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_to_do(body, status, said):
    engine = Echo()
    limits = Limits(body_mb=1100 / 2**20, inputs=8, characters=100)
    if len(body) > 5000:
        limits = Limits()
    answer = post(make_app(engine, limits=limits), body)
    assert answer.status_code == status
    assert said in answer.json()["detail"]
    assert engine.asked == []


def test_json_must_be_called_json():
    app = make_app(Echo())
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = post(app, {"inputs": ["a"]}, **{"content-type": kind})
        assert answer.status_code == 422
        assert "Content-Type: application/json" in answer.json()["detail"]


def test_a_body_without_a_length_is_cut_off_too():
    async def parts():
        for _ in range(100):
            yield b"x" * 100

    app = make_app(Echo(), limits=Limits(body_mb=1000 / 2**20))
    headers = {"content-type": "application/json"}
    answer = ask(app, "POST", "/predict", content=parts(), headers=headers)
    assert answer.status_code == 413
    assert "Split it over several requests" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("error", "status", "after"),
    [
        (ServiceError(429, "Try again in 3 s.", 3), 429, "3"),
        (ServiceError(503, "Not now.", 30), 503, "30"),
        (ServiceError(422, "inputs[0]: is empty."), 422, None),
    ],
)
def test_what_an_engine_refuses_is_told(error, status, after):
    answer = post(make_app(Echo(error=error)), {"inputs": ["a"]})
    assert (answer.status_code, answer.json()) == (status, {"detail": error.detail})
    assert answer.headers.get("retry-after") == after


def test_who_waits_too_long_is_told():
    answer = post(make_app(Echo(delay_s=5), limits=Limits(request_s=0.01)), {"inputs": ["a"]})
    assert answer.status_code == 504
    assert "no answer within 0.01 s" in answer.json()["detail"]
    assert answer.headers["retry-after"] == "5"


def test_what_nobody_expected_says_where_the_log_has_it():
    answer = post(make_app(Echo(error=RuntimeError("secret path"))), {"inputs": ["a"]})
    assert answer.status_code == 500
    assert "its log says why (request " in answer.json()["detail"]
    assert "secret" not in answer.text


def test_paths_and_methods_that_there_are_not():
    app = make_app(Echo())
    assert ask(app, "GET", "/nowhere").json()["detail"].startswith("There is no such path")
    assert ask(app, "GET", "/predict").status_code == 405
    assert ask(app, "POST", "/runs/other/reload").status_code == 404
    assert ask(app, "GET", "/docs").status_code == 404  # it would load from another host


def test_runs_are_told_and_must_be_named_where_there_are_several():
    app = make_app(Echo(names=("a", "b")))
    assert [own["name"] for own in ask(app, "GET", "/runs").json()] == ["a", "b"]
    assert ask(app, "GET", "/health").json() == {"status": "ok", "runs": {"a": "v1", "b": "v1"}}
    answer = post(app, {"inputs": ["x"]})
    assert answer.status_code == 422
    assert "name one" in answer.json()["detail"]
    assert post(app, {"inputs": ["x"], "run": "b"}).json()["run"] == "b"
    assert ask(app, "POST", "/runs/b/reload").json()["name"] == "b"


PROTECTED = [
    ("POST", "/predict"),
    ("GET", "/runs"),
    ("GET", "/metrics"),
    ("POST", "/runs/notes/reload"),
    ("GET", "/openapi.json"),
    ("GET", "/nowhere"),
]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
@pytest.mark.parametrize(
    "sent", [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"]
)
def test_without_a_token_nothing_is_told(method, path, sent):
    engine = Echo()
    app = make_app(engine, AccessTokens([TOKEN, "another-token-of-tests"]))
    headers = {} if sent is None else {"authorization": sent.encode("latin-1")}
    answer = ask(app, method, path, headers=headers, content=b"{")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "Authorization: Bearer TOKEN" in answer.json()["detail"]


def test_with_one_of_the_tokens_all_is_open():
    app = make_app(Echo(), AccessTokens(["another-token-of-tests", TOKEN]))
    for scheme in ("Bearer", "bearer"):
        headers = {"authorization": f"{scheme} {TOKEN}"}
        assert ask(app, "GET", "/runs", headers=headers).status_code == 200
    assert post(app, {"inputs": ["a"]}, authorization=f"Bearer {TOKEN}").status_code == 200
    assert ask(app, "GET", "/health").status_code == 200
    assert ask(app, "GET", "/").headers["content-type"] == "text/html; charset=utf-8"


def test_tokens_come_from_a_file_and_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "tokens"
    file.write_text(f"# of the tests\n{TOKEN}\n\n", encoding="utf-8")
    file.chmod(0o600)
    monkeypatch.setenv("TSARCH_SERVE_TOKEN", "from-the-environment")
    tokens = read_tokens(file)
    assert tokens.accepts(f"Bearer {TOKEN}")
    assert tokens.accepts("Bearer from-the-environment")
    assert not tokens.accepts("Bearer # of the tests")
    assert TOKEN not in repr(vars(tokens))
    monkeypatch.delenv("TSARCH_SERVE_TOKEN")
    assert not read_tokens(None)
    for text, said in (("short", "at least 16 characters"), ("# none", "has no tokens")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=said):
            read_tokens(file)
    with pytest.raises(UserError, match="can't be read"):
        read_tokens(tmp_path / "none")


def test_other_names_for_this_machine_are_refused():
    """A page elsewhere may make a browser call a server of this machine by a name of its own."""
    app = make_app(Echo(), hosts=("localhost", "127.0.0.1"))
    assert post(app, {"inputs": ["a"]}, host="localhost:8000").status_code == 200
    assert post(app, {"inputs": ["a"]}, host="evil.example").status_code == 400


def test_requests_are_counted_and_logged_without_texts_and_tokens(caplog):
    app = make_app(Echo(), AccessTokens([TOKEN]))
    with caplog.at_level(logging.INFO, "tsarch.serving"):
        answer = post(app, {"inputs": ["my secret"]}, authorization=f"Bearer {TOKEN}")
        ask(app, "GET", "/runs%0A/forged?x=my-secret")
    lines = [record.getMessage() for record in caplog.records]
    assert f"id={answer.headers['x-request-id']}" in lines[0]
    assert "POST /predict 200" in lines[0]
    assert "run=notes mode=joint inputs=1 tokens=7 version=v1" in lines[0]
    assert "GET /runs\\n/forged 401" in lines[1]
    assert not [own for own in lines if "secret" in own or TOKEN in own]
    text = ask(app, "GET", "/metrics", headers={"authorization": f"Bearer {TOKEN}"}).text
    assert 'tsarch_requests_total{path="/predict",run="notes",status="200"} 1.0' in text
    assert 'tsarch_requests_total{path="other",run="",status="401"} 1.0' in text
    assert 'tsarch_request_seconds_count{path="/predict",run="notes"} 1.0' in text


def test_the_document_has_examples_of_what_is_served():
    app = make_app(Echo(names=("a", "b")), AccessTokens([TOKEN]))
    document = ask(app, "GET", "/openapi.json", headers={"authorization": f"Bearer {TOKEN}"}).json()
    own = document["paths"]["/predict"]["post"]
    examples = own["requestBody"]["content"]["application/json"]["examples"]
    assert examples["b_teacher"]["value"] == {
        "run": "b",
        "inputs": ["a text"],
        "mode": "teacher",
    }
    assert {"200", "401", "404", "413", "422", "429", "503", "504"} <= set(own["responses"])
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


def test_limits_are_changed_by_name():
    limits = parse_limits(["inputs=3", "request_s=0.5"])
    assert (limits.inputs, limits.request_s) == (3, 0.5)
    with pytest.raises(UserError) as caught:
        parse_limits(["input=3", "body_mb"])
    assert "Did you mean inputs?" in str(caught.value)
    assert len(caught.value.mistakes) == 1 or "body_mb" in str(caught.value)
    for wrong in ("inputs=0", "request_s=nan", "queue_tokens=many", "cache_mb=-1"):
        with pytest.raises(UserError, match=wrong):
            parse_limits([wrong])


def test_current_versions_are_looked_for_while_the_app_runs():
    """And a version that can't be loaded doesn't end it."""
    engine, looked = Echo(names=("a", "b")), []

    async def reload(run):
        looked.append(run)
        raise ServiceError(503, "it can't be loaded")

    engine.reload = reload

    async def main() -> None:
        app = make_app(engine, background=lambda: follow(engine, 0.001))
        async with app.router.lifespan_context(app), asyncio.timeout(10):
            while len(looked) < 6:
                await asyncio.sleep(0.001)
        assert engine.closed
        count = len(looked)
        await asyncio.sleep(0.02)
        assert len(looked) == count

    asyncio.run(main())
    assert looked[:4] == ["a", "b", "a", "b"]


def test_what_is_not_installed_is_named_with_how_to_get_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(serving, "find_spec", lambda name: None if name == "fastapi" else name)
    with pytest.raises(SystemExit) as caught:
        main(["serve", str(tmp_path)])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "not installed: fastapi." in said
    assert 'pip install "tsarch[serving]"' in said


@pytest.mark.parametrize("task", TASKS)
def test_every_task_can_read_its_examples(task):
    reader = row_reader(task, DataConfig(), labelled=False)
    examples = examples_of(task, reader.columns.model_dump())
    assert len(examples) >= 2
    own = as_rows(examples, task, reader)
    assert own.problems == {}
    assert len(read_rows(own.rows, reader)) >= len(examples)
    renamed = {name: f"my_{name}" for name in reader.columns.model_dump()}
    rows = [own for own in examples_of(task, renamed, "inclusive") if isinstance(own, dict)]
    for row, own in zip(rows, examples, strict=False):
        for name in ("my_head", "my_tail"):
            assert name not in row or row[name] == [own[name[3:]][0], own[name[3:]][1] - 1]
    assert all(name.startswith("my_") for row in rows for name in row)
